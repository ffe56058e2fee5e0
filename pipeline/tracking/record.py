"""The run being written. Training appends to a local file and never waits for MLflow."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from filelock import FileLock

from pipeline.environment import code_version, command_line
from pipeline.tracking.delivery import Courier, Delivery
from pipeline.tracking.events import Event, EventLog, Kind, read_events
from pipeline.tracking.runs import STORE, RunFolder, create_child, create_run
from pipeline.tracking.store import prepare_mlflow
from pipeline.tracking.uris import tracking_uri

Status = Literal["FINISHED", "FAILED", "KILLED"]
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


def start_record(experiment: str, uri: str | None, task: str, store: Path = STORE) -> Record:
    """Begins a new run in a folder of its own; nothing here waits for MLflow.

    Args:
        experiment: MLflow experiment; made when missing.
        uri: Configured tracking URI; None takes `MLFLOW_TRACKING_URI`, else the database in `store`.
        task: Such as `segmentation`.
        store: Folder of runs, database and artifacts.

    Raises:
        ConfigError: If the URI is not one that MLflow takes.
        ResourceError: If the store cannot be written.
    """
    return _start(create_run(experiment, task, tracking_uri(uri, store), _now(), store))


def start_child(parent: RunFolder, part: str) -> Record:
    """Begins a part of a run, such as `fold0`, with a folder of its own; in MLflow it is nested in the run.

    Raises:
        ResourceError: If the store cannot be written.
    """
    return _start(create_child(parent, part, _now()))


def resume_record(run: RunFolder) -> Record:
    """Goes on with a run that was stopped, killed or ended; it is the same run in MLflow.

    Steps done again after the last checkpoint come again; their first value stays (see `Record.log_metrics`).

    Raises:
        ConfigError: If another process is writing the run.
        ResourceError: If its folder cannot be written.
    """
    return _begin(run, run.hold())


class Record:
    """A run being written by this process, which holds it until `close`.

    Its methods cost microseconds and raise `ResourceError` if the local disk is full or gone; nothing that
    happens to MLflow reaches the caller. `start_record` and `resume_record` make one.

    Attributes:
        run: The run's folder and facts.
    """

    def __init__(self, run: RunFolder, lock: FileLock) -> None:
        self.run = run
        self._lock = lock
        self._log = EventLog(run.events)
        self._points: set[tuple[str, int]] = set()
        self._parameters: dict[str, str] = {}
        for event, _ in read_events(run.events):
            self._remember(event)
        self._drain = _Drain(Courier(run))
        self._append("status", {"status": "RUNNING"})
        self._drain.start()

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def folder(self) -> Path:
        """The run's folder, absolute; checkpoints and other files of the run lie in it."""
        return self.run.path

    def log_parameters(self, values: Mapping[str, str]) -> None:
        """Notes settings. MLflow keeps the first value: a later one becomes the tag `changed.<name>`."""
        fresh = {name: value for name, value in values.items() if name not in self._parameters}
        changed = {
            f"changed.{name}": value
            for name, value in values.items()
            if name not in fresh and self._parameters[name] != value
        }
        self._append("parameters", fresh)
        self._append("tags", changed)

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Notes remarks; a later value replaces an earlier one."""
        self._append("tags", values)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Notes numbers at a step. A name has one value at a step: the first, also after a resumption."""
        fresh = {name: float(value) for name, value in values.items() if (name, step) not in self._points}
        self._append("metrics", fresh, step)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Notes a file to be copied to MLflow's artifacts, into `folder` there.

        The file is read when it is delivered: it must lie in the run's folder and stay.

        Raises:
            ValueError: If it is not a file in the run's folder.
        """
        inside, home = path.resolve(), self.folder.resolve()  # `runs` may be a link to a bigger disk
        if not inside.is_file() or not inside.is_relative_to(home):
            raise ValueError(f"an artifact is a file in {self.folder}, not {path}")
        self._append("artifact", {"path": inside.relative_to(home).as_posix(), "folder": folder})

    def log_dataset(
        self, name: str, digest: str, context: str, source: str, num_cases: int | None = None
    ) -> None:
        """Notes data that the run uses.

        Args:
            name: What people call them.
            digest: Changes with their content; at most 36 letters.
            context: What for, such as `training`.
            source: Where they are.
            num_cases: How many; None if that is not said.
        """
        values = {"name": name, "digest": digest, "context": context, "source": source}
        if num_cases is not None:
            values["num_cases"] = str(num_cases)
        self._append("dataset", values)

    def flush(self) -> None:
        """Returns when all that was noted would survive a power loss (milliseconds): once per checkpoint."""
        self._log.flush()

    def close(self, status: Status, timeout_s: float = 30.0) -> Delivery:
        """Ends the run and lets go of it; waits for MLflow at most `timeout_s` seconds.

        Returns:
            How much MLflow has; what it lacks is on this disk, and `deliver` takes it there later.
        """
        try:
            self._append("status", {"status": status})
            self._log.close()
        finally:
            delivery = self._drain.finish(timeout_s)
            self._lock.release()
        return delivery

    def _append(self, kind: Kind, values: Mapping[str, str | float], step: int = 0) -> None:
        if values:
            event = Event(kind, _now(), values, step)
            self._log.append(event)
            self._remember(event)

    def _remember(self, event: Event) -> None:
        if event.kind == "metrics":
            self._points.update((name, event.step) for name in event.values)
        elif event.kind == "parameters":
            self._parameters |= {name: str(value) for name, value in event.values.items()}


class _Drain(threading.Thread):
    """Delivers behind the training's back; a daemon, so that a hanging server cannot hold up the exit."""

    def __init__(self, courier: Courier) -> None:
        super().__init__(name="tracking", daemon=True)
        self._courier = courier
        self._is_over = threading.Event()

    def run(self) -> None:
        """Delivers what is new each second; after trouble it waits twice as long each time, to a minute."""
        pause = _PAUSE_S
        while True:
            is_last = self._is_over.is_set()
            is_well = self._courier.deliver_pending()
            if is_last:
                return
            pause = _PAUSE_S if is_well else min(2 * pause, _LONGEST_PAUSE_S)
            self._is_over.wait(pause)

    def finish(self, timeout_s: float) -> Delivery:
        """Delivers the rest within `timeout_s` seconds, or leaves it."""
        self._is_over.set()
        self.join(timeout_s)
        self._courier.cancelled.set()
        delivery = self._courier.report()
        if delivery.undelivered and delivery.problem is None:
            problem = f"MLflow at {self._courier.uri} gave no answer within {timeout_s:g} s"
            delivery = replace(delivery, problem=problem)
        return delivery


def _start(run: RunFolder) -> Record:
    record = _begin(run, run.hold())
    record.set_tags(
        {
            "clinseg.task": run.task,
            "clinseg.command": command_line(),
            "mlflow.source.name": "clinseg",
            "mlflow.source.type": "LOCAL",
        }
    )
    if commit := code_version():
        record.set_tags({"mlflow.source.git.commit": commit})
    return record


def _begin(run: RunFolder, lock: FileLock) -> Record:
    prepare_mlflow()  # here, since two threads that import large packages at once get in each other's way
    try:
        return Record(run, lock)
    except BaseException:
        lock.release()
        raise


def _now() -> int:
    return time.time_ns() // 1_000_000
