"""A store that was moved: MLflow notes absolute places of artifacts; opening the store puts them right."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.tracking.runs import ARTIFACTS

_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def follow_move(database: Path) -> None:
    """Lets a database that was moved or copied together with its artifacts find those beside it.

    Only places in a folder of this layout are changed, and only if that folder is gone or has a database of
    its own; what a person put elsewhere stays.

    Args:
        database: MLflow's own, up to date; its artifacts lie beside it in `artifacts/`.

    Raises:
        sqlite3.Error: If the database is locked by another process for half a minute, or cannot be written.
    """
    home = database.parent / ARTIFACTS
    if not home.is_dir():
        return
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        for old in list(_left_behind(connection, database, home)):
            for table, column in _PLACES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - words of ours
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (home.as_uri(), len(old) + 1, old, len(old) + 1, f"{old}/"),
                )


def _left_behind(connection: sqlite3.Connection, database: Path, home: Path) -> Iterator[str]:
    """URIs of artifact folders that stores like this one had elsewhere."""
    for (location,) in connection.execute("SELECT DISTINCT artifact_location FROM experiments"):
        parts = urlsplit(location or "")
        folder = Path(unquote(parts.path))
        if parts.scheme != "file" or folder.name != ARTIFACTS or folder.resolve() == home.resolve():
            continue
        if not folder.is_dir() or folder.with_name(database.name).is_file():
            yield location
