"""Which MLflow is meant: its tracking URI."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import ConfigError, Fault
from pipeline.tracking.runs import STORE, database_uri

_SERVERS = ("http", "https")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def tracking_uri(configured: str | None, store: Path = STORE) -> str:
    """The tracking URI: the configured one, else `MLFLOW_TRACKING_URI`, else the database in `store`.

    Raises:
        ConfigError: If MLflow no longer takes such a URI, or it carries a password.
    """
    where = "tracking.uri" if configured else "MLFLOW_TRACKING_URI"
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or database_uri(store)
    parts = urlsplit(uri)
    if parts.scheme.partition("+")[0] not in _SERVERS + _DATABASES:
        message = (
            f"it must name a server (http://host:5000) or a database (sqlite:///{STORE}/mlflow.db), "
            f"not {uri!r}; MLflow has given up plain folders. Leave it empty for the database in {STORE}"
        )
        raise ConfigError(Fault(where, "tracking-uri", message))
    if parts.password is not None:
        message = (
            "a password does not belong in it, for it is written into every run; use "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or for PostgreSQL PGPASSWORD or ~/.pgpass"
        )
        raise ConfigError(Fault(where, "tracking-password", message))
    return _absolute(uri)


def is_server(uri: str) -> bool:
    """Whether the URI names an MLflow server rather than a database."""
    return urlsplit(uri).scheme in _SERVERS


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite database; None if the URI names something else."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return Path(match[1]) if match else None


def _absolute(uri: str) -> str:
    """The same database wherever a later command is run."""
    file = sqlite_file(uri)
    return uri if file is None else uri.replace(f":///{file}", f":///{file.resolve()}", 1)
