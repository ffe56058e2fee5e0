"""Runs that an older MLflow kept as files, which newer ones refuse, taken over into a database."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError, Fault
from pipeline.tracking.importing_models import import_models
from pipeline.tracking.models import asking
from pipeline.tracking.runs import STORE
from pipeline.tracking.store import PARENT_TAG, all_pages, connect, experiment_id
from pipeline.tracking.uris import tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

_ORIGIN_TAG: Final = "clinseg.imported_from"  # the run's id in the folder
_WHOLE_TAG: Final = "clinseg.imported"
_NUM_TOGETHER: Final = 500  # of 1000 that MLflow takes in one batch, of which 100 may be parameters or tags
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Import:
    """What came of it.

    Attributes:
        imported: Names of the runs that are new.
        num_known: Runs that were imported before.
        models: Versions of registered models that are new, such as `prostate/3`, by their old number.
        left: Versions that stay there, each with the reason.
    """

    imported: tuple[str, ...]
    num_known: int
    models: tuple[str, ...]
    left: tuple[str, ...]


def import_runs(
    folder: Path,
    store: Path = STORE,
    uri: str | None = None,
) -> Import:
    """Copies every run of a folder, with its points, artifacts and parent, and the models registered there.

    Deleted ones stay out.

    What was imported before is known by its id and left alone; what was left unfinished then is made anew.

    Args:
        folder: Such as an old `mlruns`; it is only read.
        store: Folder of runs, database and artifacts.
        uri: Configured tracking URI; None takes `MLFLOW_TRACKING_URI`, else the database in `store`.

    Raises:
        ConfigError: If it is no such folder.
        ServiceError: If MLflow is out of reach.
    """
    _check(folder)
    address = tracking_uri(uri, store)
    with tempfile.TemporaryDirectory() as name, asking(address, str(folder), "does not take its runs"):
        old, target = _read(folder, Path(name)), connect(address)
        imported, num_known, new_ids = [], 0, dict[str, str]()
        for experiment in old.search_experiments():
            runs = all_pages(old.search_runs, experiment_ids=[experiment.experiment_id])
            place = experiment_id(target, experiment.name, address, store.resolve()) if runs else ""
            for run in _parents_first(runs):
                known = _find(target, place, run.info.run_id)
                if known is None:
                    known = _copy(old, target, run, place, new_ids, folder)
                    imported.append(run.info.run_name or run.info.run_id)
                else:
                    num_known += 1
                new_ids[run.info.run_id] = known
        models, left = import_models(old, target, new_ids)
    return Import(tuple(imported), num_known, tuple(models), tuple(left))


def _check(folder: Path) -> None:
    if not any(folder.glob("*/meta.yaml")):
        message = (
            "expected the folder in which an older MLflow kept its runs as files (experiments with a "
            "meta.yaml in each), such as an old mlruns; check the path"
        )
        raise ConfigError(Fault(str(folder), "file-store", message))


def _read(folder: Path, place: Path) -> MlflowClient:
    """The folder's runs in a database of their own, made by MLflow's converter, which knows all its forms."""
    from mlflow.store.fs2db import migrate  # noqa: PLC0415 - see store.prepare_mlflow

    uri = f"sqlite:///{place / 'converted.db'}"
    (place / "mlruns").symlink_to(folder.resolve(), target_is_directory=True)
    with redirect_stdout(io.StringIO()):  # its summary is about the wrong database
        migrate(place, uri, progress=False)
    return connect(uri)


def _parents_first(runs: Sequence[Run]) -> list[Run]:
    """Oldest first: a run begins before its parts do."""
    return sorted(runs, key=lambda run: (PARENT_TAG in run.data.tags, run.info.start_time))


def _find(target: MlflowClient, experiment: str, run_id: str) -> str | None:
    """The run that was imported from this one; one that was left unfinished is deleted."""
    found = target.search_runs([experiment], f"tags.`{_ORIGIN_TAG}` = '{run_id}'")
    for run in found:
        if _WHOLE_TAG in run.data.tags:
            return str(run.info.run_id)
        target.delete_run(run.info.run_id)
    return None


def _copy(
    old: MlflowClient,
    target: MlflowClient,
    run: Run,
    experiment: str,
    new_ids: dict[str, str],
    folder: Path,
) -> str:
    from mlflow.entities import Param, RunTag  # noqa: PLC0415 - see store.prepare_mlflow

    tags = {**run.data.tags, _ORIGIN_TAG: run.info.run_id}
    if (parent := tags.get(PARENT_TAG)) in new_ids:
        tags[PARENT_TAG] = new_ids[str(parent)]
    created = target.create_run(
        experiment, run.info.start_time, {_ORIGIN_TAG: run.info.run_id}, run.info.run_name
    )
    new_id = str(created.info.run_id)
    for tag_group in _groups([RunTag(*item) for item in tags.items()], 100):
        target.log_batch(new_id, tags=tag_group)
    for group in _groups([Param(*item) for item in run.data.params.items()], 100):
        target.log_batch(new_id, params=group)
    for points in _groups(_points(old, run), _NUM_TOGETHER):
        target.log_batch(new_id, metrics=points)
    if run.inputs is not None and run.inputs.dataset_inputs:
        target.log_inputs(new_id, run.inputs.dataset_inputs)
    if (artifacts := _artifacts(run, folder)) is not None:
        target.log_artifacts(new_id, str(artifacts))
    if run.info.status != "RUNNING":
        target.set_terminated(new_id, run.info.status, run.info.end_time)
    target.set_tag(new_id, _WHOLE_TAG, "whole")
    return new_id


def _points(old: MlflowClient, run: Run) -> list[Metric]:
    return [point for name in run.data.metrics for point in old.get_metric_history(run.info.run_id, name)]


def _groups(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _artifacts(run: Run, folder: Path) -> Path | None:
    """Where the run's files are now: in the folder, which may have been moved, or where it says they are."""
    parts = urlsplit(run.info.artifact_uri)
    said = Path(unquote(parts.path)) if parts.scheme in ("", "file") else None
    inside = next(folder.glob(f"*/{run.info.run_id}/artifacts"), None)
    return next((path for path in (inside, said) if path is not None and any(_children(path))), None)


def _children(path: Path) -> Iterator[Any]:
    return path.iterdir() if path.is_dir() else iter(())
