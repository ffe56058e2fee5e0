"""Checkpoints fetched from MLflow: by registered model or by run."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, Fault, FaultError, ServiceError
from pipeline.files import resource_error
from pipeline.tracking.runs import STORE
from pipeline.tracking.store import DestinationError, connect, is_absent, is_refusal, reason_of
from pipeline.tracking.uris import tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SUFFIX = ".safetensors"
_PREFERRED = "best.safetensors"
_DATA = "data"  # where a model that was registered has its checkpoint
_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_RUN_ID = re.compile(r"[0-9a-f]{32}")


def is_run_id(reference: str) -> bool:
    """Whether `reference` has the form of an MLflow run id, 32 hexadecimal letters."""
    return _RUN_ID.fullmatch(reference) is not None


def fetch_model(reference: str, store: Path = STORE, uri: str | None = None) -> Path:
    """Downloads a checkpoint into `store/models/` and returns its path.

    It is downloaded anew each time: an alias moves, and a version number can be used again.

    Args:
        reference: `models:/name@alias`, `models:/name/3`, or an MLflow run id (32 hexadecimal letters).
        store: Folder of runs, database and artifacts.
        uri: Configured tracking URI; None takes `MLFLOW_TRACKING_URI`, else the database in `store`.

    Raises:
        ConfigError: If the reference is none, or there is no such model, version, run or checkpoint.
        ServiceError: If MLflow is out of reach.
        ResourceError: If the checkpoint cannot be written.
    """
    if not (_REGISTERED.fullmatch(reference) or is_run_id(reference)):
        message = "expected models:/name@alias, models:/name/version, or an MLflow run id of 32 letters"
        raise ConfigError(Fault(reference, "model-reference", message))
    address = tracking_uri(uri, store)
    with asking(address, reference, "has no such model"):
        client = connect(address)
        source = _source_of(client, reference)
        return _download(reference, source, _checkpoint_in(reference, source, address), address, store)


@contextmanager
def asking(address: str, where: str, refusal: str) -> Iterator[None]:
    """Tells people what MLflow answered to what they asked, whichever of its libraries said so.

    Args:
        address: Of MLflow.
        where: What was asked for.
        refusal: What it means, after "MLflow at …", that there is no such thing or it cannot be.

    Raises:
        ConfigError: If MLflow refuses it.
        ServiceError: If MLflow is out of reach.
        ResourceError: If a file cannot be written.
    """
    try:
        yield
    except FaultError:
        raise
    except Exception as error:  # MLflow, requests and SQLAlchemy each have their own
        if isinstance(error, OSError) and error.errno is not None:  # a network error of requests has none
            raise resource_error(Path(error.filename or where), error) from error
        if is_absent(error) or is_refusal(error) or isinstance(error, DestinationError):
            message = f"MLflow at {address} {refusal}: {reason_of(error)}"
            raise ConfigError(Fault(where, "model-unknown", message)) from error
        message = (
            f"MLflow at {address} is out of reach ({reason_of(error)}); see that it runs, then try again"
        )
        raise ServiceError(Fault(where, "mlflow-unreachable", message)) from error


def _source_of(client: MlflowClient, reference: str) -> str:
    """The artifact folder that holds the checkpoint."""
    match = _REGISTERED.fullmatch(reference)
    if match is None:
        return f"{client.get_run(reference).info.artifact_uri}/model"
    version = match["version"] or client.get_model_version_by_alias(match["name"], match["alias"]).version
    return str(client.get_model_version_download_uri(match["name"], version))


def _checkpoint_in(reference: str, source: str, address: str) -> str:
    """The name of the checkpoint in the artifact folder `source`, which may also be the file itself."""
    from mlflow.artifacts import list_artifacts  # noqa: PLC0415 - see store.prepare_mlflow

    if source.endswith(_SUFFIX):
        return ""
    for folder in ("", _DATA):
        where = f"{source}/{folder}".rstrip("/")
        paths = [Path(found.path) for found in list_artifacts(artifact_uri=where, tracking_uri=address)]
        names = [path.name for path in paths if path.suffix == _SUFFIX]
        if _PREFERRED in names or len(names) == 1:
            return f"{folder}/{_PREFERRED if _PREFERRED in names else names[0]}".lstrip("/")
        if names or _DATA not in (path.name for path in paths):
            break
    came = ", ".join(names) or f"no {_SUFFIX} file"
    message = f"expected {_PREFERRED} or one single {_SUFFIX} file among its artifacts, found {came}"
    raise ConfigError(Fault(reference, "model-without-checkpoint", message))


def _download(reference: str, source: str, name: str, address: str, store: Path) -> Path:
    from mlflow.artifacts import download_artifacts  # noqa: PLC0415 - see store.prepare_mlflow

    where = f"{source}/{name}" if name else source
    key = hashlib.sha256(f"{address} {where}".encode()).hexdigest()[:16]
    label = re.sub(r"\W+", "-", reference.removeprefix("models:/")).strip("-")
    path = store.resolve() / "models" / f"{label}-{key}" / where.rpartition("/")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        found = download_artifacts(artifact_uri=where, dst_path=folder, tracking_uri=address)
        Path(found).replace(path)
    return path
