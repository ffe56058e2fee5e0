"""MLflow's registry: checkpoints as models that MLflow can serve, under names, versions and aliases."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.environment import environment
from pipeline.errors import ConfigError, Fault
from pipeline.tracking.listing import BEST, main_figure
from pipeline.tracking.models import asking
from pipeline.tracking.runs import STORE
from pipeline.tracking.store import NAME_TAG, all_pages, connect
from pipeline.tracking.uris import tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.types import ColSpec

_NAME = re.compile(r"\w[\w .-]*")
_ALIAS = re.compile(r"(?!latest$|v\d+$)\w[\w-]*", re.IGNORECASE)
_HASH_TAG, _TASK_TAG, _SCORE_TAG = "clinseg.sha256", "clinseg.task", "clinseg.score"
_FLAVOUR: Final = "model"  # the name of a logged model, which MLflow shows beside its run

# Kinds of columns in words, so that nobody else needs MLflow's types.
Columns = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Servable:
    """What MLflow needs to serve a checkpoint.

    Attributes:
        checkpoint: The file; it is stored as it is.
        content_hash: Of what it holds.
        loader: Module whose `_load_pyfunc(path)` makes a model of the file.
        inputs: Kind of each column of a request, by name; every one may be left out.
        outputs: Kind of each column of an answer. Kinds are `text`, `texts`, `number`, `flag`, `numbers`
            (by name), `bytes`, `many bytes`, `matrix` and `any`.
        example: A request that works anywhere, one row.
    """

    checkpoint: Path
    content_hash: str
    loader: str
    inputs: Columns
    outputs: Columns
    example: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version of a registered model.

    Attributes:
        name: Of the model.
        version: Its number.
        aliases: That stand for it now.
        run: Name of the run that made it, or MLflow's id where it has no name.
        task: Such as `segmentation`.
        score: The figure that the run is judged by, such as `dice/mean 0.8837`; empty if there is none.
        is_new: Whether it was made just now.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    run: str
    task: str
    score: str
    is_new: bool = False


def register_model(
    servable: Servable, run_id: str, name: str, alias: str | None, uri: str
) -> RegisteredVersion:
    """Logs a checkpoint as a model of its run and makes it a version of `name`.

    What is registered under this name already is not stored again; only the alias moves then.

    Args:
        servable: What to register.
        run_id: MLflow's id of the run that it comes from.
        name: Of the registered model; made when missing.
        alias: Shall stand for this version from now on; None to give none.
        uri: Tracking URI.

    Raises:
        ConfigError: If the name or alias cannot be one, or MLflow has no such run.
        ServiceError: If MLflow is out of reach.
    """
    _check(name, alias)
    with asking(uri, name, "does not register it"):
        client = connect(uri)
        known = _find_same(client, name, servable.content_hash)
        version = known or _make_version(client, servable, client.get_run(run_id), name)
        if alias is not None:
            client.set_registered_model_alias(name, alias, version.version)
        aliases = client.get_registered_model(name).aliases
    return _describe(version, aliases, is_new=known is None)


def list_models(store: Path = STORE, uri: str | None = None) -> list[RegisteredVersion]:
    """All versions of all registered models, by name, the newest version first.

    Args:
        store: Folder of runs, database and artifacts.
        uri: Configured tracking URI; None takes `MLFLOW_TRACKING_URI`, else the database in `store`.

    Raises:
        ServiceError: If MLflow is out of reach.
    """
    address = tracking_uri(uri, store)
    with asking(address, "models", "does not list them"):
        client = connect(address)
        aliases = {model.name: model.aliases for model in all_pages(client.search_registered_models)}
        versions = [_describe(v, aliases.get(v.name, {})) for v in all_pages(client.search_model_versions)]
    return sorted(versions, key=lambda found: (found.name, -found.version))


def _check(name: str, alias: str | None) -> None:
    """Refuses what MLflow would, before anything is stored."""
    faults = []
    if not _NAME.fullmatch(name):
        message = f"a model's name has letters, digits, dashes, dots, underscores and blanks, not {name!r}"
        faults.append(Fault("NAME", "model-name", message))
    if alias is not None and not _ALIAS.fullmatch(alias):
        message = f"an alias has letters, digits, dashes and underscores and is no version, not {alias!r}"
        faults.append(Fault("--alias", "model-alias", message))
    if faults:
        raise ConfigError(faults)


def _find_same(client: MlflowClient, name: str, content_hash: str) -> ModelVersion | None:
    """The newest version that holds the same checkpoint."""
    where = f"name = '{name}' and tags.`{_HASH_TAG}` = '{content_hash}'"
    same = client.search_model_versions(where)
    return max(same, key=lambda version: int(version.version), default=None)


def _make_version(client: MlflowClient, servable: Servable, run: Run, name: str) -> ModelVersion:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - see store.prepare_mlflow

    task = run.data.tags.get(_TASK_TAG, "")
    figures = {
        name.removeprefix(BEST): value for name, value in run.data.metrics.items() if name.startswith(BEST)
    }
    score = main_figure(figures)
    tags = {
        NAME_TAG: run.data.tags.get(NAME_TAG, run.info.run_id),
        _TASK_TAG: task,
        _SCORE_TAG: score,
        _HASH_TAG: servable.content_hash,
    }
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model = _log_model(client, servable, run, tags)
    description = f"{task} by run {tags[NAME_TAG]}" + (f", {score}" if score else "")
    # The location itself: MLflow looks `models:/<id>` up at the process's tracking URI, not at the client's.
    return client.create_model_version(
        name, model.artifact_location, run.info.run_id, tags, description=description, model_id=model.model_id
    )


def _log_model(client: MlflowClient, servable: Servable, run: Run, tags: dict[str, str]) -> LoggedModel:
    """Stores the model beside its run; one that was cut off is marked as failed."""
    import mlflow.pyfunc  # noqa: PLC0415 - see store.prepare_mlflow
    from mlflow.models import Model, ModelSignature  # noqa: PLC0415 - MLflow and pandas take seconds
    from mlflow.types import Schema  # noqa: PLC0415 - MLflow and pandas take seconds
    from pandas import DataFrame  # noqa: PLC0415 - MLflow and pandas take seconds

    logged = client.create_logged_model(
        run.info.experiment_id, _FLAVOUR, run.info.run_id, tags, model_type=tags[_TASK_TAG] or None
    )
    versions = environment()
    signature = ModelSignature(
        Schema([_column(name, kind, required=False) for name, kind in servable.inputs.items()]),
        Schema([_column(name, kind, required=False) for name, kind in servable.outputs.items()]),
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / _FLAVOUR
            mlflow.pyfunc.save_model(
                str(path),
                loader_module=servable.loader,
                data_path=str(servable.checkpoint),
                mlflow_model=Model(run_id=run.info.run_id, model_id=logged.model_id),
                signature=signature,
                input_example=DataFrame([dict(servable.example)]),
                pip_requirements=[f"{package}=={versions[package]}" for package in ("clinseg", "mlflow")],
            )
            client.log_model_artifacts(logged.model_id, str(path))
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    return client.finalize_logged_model(logged.model_id, "READY")


def _column(name: str, kind: str, *, required: bool) -> ColSpec:
    from mlflow.types import ColSpec, DataType  # noqa: PLC0415 - see store.prepare_mlflow
    from mlflow.types.schema import AnyType, Array, Map  # noqa: PLC0415 - MLflow and pandas take seconds

    kinds: dict[str, Any] = {
        "text": DataType.string,
        "texts": Array(DataType.string),
        "number": DataType.double,
        "flag": DataType.boolean,
        "numbers": Map(DataType.double),
        "bytes": DataType.binary,
        "many bytes": Array(DataType.binary),
        "matrix": Array(Array(DataType.double)),
        "any": AnyType(),  # type: ignore[no-untyped-call]  # MLflow has no types here
    }
    return ColSpec(kinds[kind], name, required=required)


def _describe(
    version: ModelVersion, aliases: Mapping[str, str | int], *, is_new: bool = False
) -> RegisteredVersion:
    tags = version.tags
    return RegisteredVersion(
        name=version.name,
        version=int(version.version),
        aliases=tuple(sorted(a for a, number in aliases.items() if int(number) == int(version.version))),
        run=tags.get(NAME_TAG) or version.run_id or "",
        task=tags.get(_TASK_TAG, ""),
        score=tags.get(_SCORE_TAG, ""),
        is_new=is_new,
    )
