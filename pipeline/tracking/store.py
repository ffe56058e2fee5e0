"""MLflow itself: where it is, how it is opened, and one run inside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock

from pipeline.tracking.moving import follow_move
from pipeline.tracking.runs import ARTIFACTS, RunFolder, find_parent, read_note
from pipeline.tracking.uris import is_server, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

NAME_TAG = "clinseg.run"
"""Holds the name of a run, which is that of its folder."""

NOTE_TAG = "mlflow.note.content"
"""Holds Markdown that MLflow shows on a run's page."""

RUN_ID = "{run_id}"
"""Stands in a note for MLflow's id of the run, which nobody knows when it is written."""

PARENT_TAG = "mlflow.parentRunId"


class DestinationError(Exception):
    """MLflow does not take this run now; says why and what to do."""


def prepare_mlflow() -> None:
    """Imports MLflow (2 s); its settings stand in `pipeline/__init__.py`."""
    import mlflow  # noqa: F401, PLC0415 - slow to import


def connect(uri: str) -> MlflowClient:
    """A client of the store; makes the database if there is none (seconds).

    Raises:
        Exception: Whatever MLflow, its database or its network raise.
    """
    prepare_mlflow()
    from mlflow import MlflowClient  # noqa: PLC0415 - see prepare_mlflow

    if not (database := sqlite_file(uri)):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    # Of processes that make one database at the same time all but one would die.
    with FileLock(database.with_name(f".{database.name}.lock")):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        follow_move(database)
    return client


class Destination:
    """One run inside MLflow. Its methods raise whatever MLflow raises.

    Attributes:
        run_id: MLflow's id of the run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    @classmethod
    def open(cls, run: RunFolder, run_id: str | None) -> Self:
        """Finds the run, or makes it if MLflow has none of this id or name.

        A part of a run is made once that run is there, and nested in it.

        Raises:
            DestinationError: If the run or its experiment was deleted in MLflow, or the run that it is a part
                of is not there yet.
        """
        parent_id = _parent_id(run)
        client = connect(run.uri)
        if run_id is None or not _exists(client, run_id):
            run_id = _find_or_create(client, run)
        destination = cls(client, run_id)
        destination.check_active()
        if parent_id is not None:  # each time, for MLflow may have lost the parent, which is then made anew
            client.set_tag(run_id, PARENT_TAG, parent_id)
        return destination

    def check_active(self) -> None:
        """Raises `DestinationError` if somebody deleted the run."""
        if self._client.get_run(self.run_id).info.lifecycle_stage != "active":
            message = f"its run {self.run_id} was deleted; restore it there (`mlflow runs restore`)"
            raise DestinationError(message)

    def points(self, names: Iterable[str]) -> set[tuple[str, int]]:
        """The (name, step) that MLflow already has of these metrics."""
        histories = [self._client.get_metric_history(self.run_id, name) for name in names]
        return {(point.key, point.step) for history in histories for point in history}

    def log(self, metrics: list[Metric], parameters: list[Param], tags: list[RunTag]) -> None:
        """Logs everything, in batches of the size that MLflow takes."""
        self._client.log_batch(self.run_id, metrics, parameters, tags, synchronous=True)

    def log_dataset(self, values: Mapping[str, str]) -> None:
        """Notes data that the run uses; see `Record.log_dataset`. The same twice is noted once."""
        from mlflow.entities import Dataset, DatasetInput, InputTag  # noqa: PLC0415 - see prepare_mlflow

        profile = {"num_rows": int(values["num_cases"])} if "num_cases" in values else {}
        dataset = Dataset(
            name=values["name"],
            digest=values["digest"],
            source_type="local",
            source=json.dumps({"uri": values["source"]}),
            profile=json.dumps(profile) if profile else None,
        )
        context = InputTag("mlflow.data.context", values["context"])
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, [context])])

    def upload(self, path: Path, folder: str) -> None:
        """Copies a file to the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path), folder or None)

    def set_status(self, status: str, time: int) -> None:
        """Sets the status; every one but `RUNNING` ends the run at `time` (milliseconds since 1970)."""
        if status == "RUNNING":
            self._client.update_run(self.run_id, status=status)
        else:
            self._client.set_terminated(self.run_id, status, time)


def all_pages(search: Callable[..., Any], **arguments: Any) -> list[Any]:  # noqa: ANN401 - MLflow's own
    """Everything that a search of MLflow's client finds, page after page."""
    found, token = [], None
    while True:
        page = search(**arguments, page_token=token)
        found += page
        if not (token := page.token):
            return found


def is_refusal(error: Exception) -> bool:
    """Whether MLflow refused what it was given, so that giving it again would not help."""
    return getattr(error, "error_code", None) in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def is_absent(error: Exception) -> bool:
    """Whether MLflow has nothing of that name."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def reason_of(error: Exception) -> str:
    """The error in one short line."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    # What matters stands at the two ends: what was tried, and what came of it.
    return text if len(text) <= 300 else f"{text[:120]} … {text[-170:]}"


def portable_name(name: str) -> str:
    """The name with every character that MLflow refuses as its hexadecimal code, so that two stay two."""
    return re.sub(r"[^/\w.\- :]", lambda match: f"_{ord(match[0]):02x}", name)


@contextmanager
def _lost_race() -> Iterator[None]:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - see prepare_mlflow

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _exists(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - see prepare_mlflow

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if is_absent(error):
            return False
        raise
    return True


def _find_or_create(client: MlflowClient, run: RunFolder) -> str:
    """The run of this name, which an earlier process may have made without noting its id, or a new one."""
    experiment = experiment_id(client, run.experiment, run.uri, run.store)
    found = client.search_runs([experiment], f"tags.`{NAME_TAG}` = '{run.name}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    # MLflow would note who is logged in only if told so; a record does not need the name of a person.
    created = client.create_run(experiment, run.created, {NAME_TAG: run.name}, run.name)
    return str(created.info.run_id)


def _parent_id(run: RunFolder) -> str | None:
    """MLflow's id of the run that this one is a part of; None if there is none on this disk."""
    parent = find_parent(run)
    if parent is None:
        return None
    run_id = read_note(parent).run_id
    if run_id is None:
        message = f"it is a part of {parent.name}, which is not there yet (`clinseg sync {parent.name}`)"
        raise DestinationError(message)
    return run_id


def experiment_id(client: MlflowClient, name: str, uri: str, store: Path) -> str:
    """MLflow's id of an experiment, which is made when missing.

    Args:
        client: Of the MLflow at `uri`.
        name: Of the experiment.
        uri: Tracking URI.
        store: Folder that holds the artifacts, unless a server does.

    Raises:
        DestinationError: If it was deleted there.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = None if is_server(uri) else (store / ARTIFACTS).as_uri()
        with _lost_race():
            client.create_experiment(name, artifact_location=location)
        experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise DestinationError(f"it neither has nor makes the experiment {name!r}")
    if experiment.lifecycle_stage != "active":
        command = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise DestinationError(f"the experiment {name!r} was deleted; restore it there (`{command}`)")
    return str(experiment.experiment_id)
