"""What the runs on this disk have come to, at a glance and without MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pipeline.tracking.events import parse_event, read_events
from pipeline.tracking.runs import STORE, RunFolder, read_note, read_runs

BEST = "best/"
"""Metrics whose name begins with this are what a run is judged by; a listing shows the last value of each."""
_MAIN = ("dice/mean", "auc", "psnr_after")  # of each task the figure to name where there is room for one


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One line of a listing.

    Attributes:
        name: The run's name.
        experiment: MLflow experiment.
        task: Such as `segmentation`.
        status: `RUNNING`, `FINISHED`, `FAILED`, `KILLED`, or `interrupted`: it ended without a word.
        started: When it began, in local time.
        minutes: Time it was worked on, without the pauses between an end and a resumption.
        best: Last value of each metric named `best/…`, without that prefix.
        undelivered: Events that MLflow lacks.
    """

    name: str
    experiment: str
    task: str
    status: str
    started: datetime
    minutes: float
    best: dict[str, float]
    undelivered: int

    @property
    def score(self) -> str:
        """See `main_figure`."""
        return main_figure(self.best)


def list_runs(store: Path = STORE, limit: int = 20) -> list[RunSummary]:
    """The newest runs first; reads only this disk."""
    return [summarise_run(run) for run in read_runs(store)[:limit]]


def main_figure(best: Mapping[str, float]) -> str:
    """The figure that a run is named by, such as `dice/mean 0.8837`; empty if it has none of them.

    Args:
        best: Last values of its metrics `best/…`, without that prefix.
    """
    found = ((name, best.get(name)) for name in _MAIN)
    return next((f"{name} {value:.4f}" for name, value in found if value is not None), "")


def read_metrics(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a run as pairs of step and value, in the order they were logged."""
    series: dict[str, list[tuple[int, float]]] = {}
    for event, _ in read_events(run.events):
        if event.kind == "metrics":
            for name, value in event.values.items():
                series.setdefault(name, []).append((event.step, float(value)))
    return series


def read_settings(run: RunFolder) -> tuple[dict[str, str], dict[str, str]]:
    """A run's parameters as it began with them, and its tags as they are now.

    Parameters are every setting of its job as text, by dotted key; unlike its `config.yaml` they can be read
    by any version.
    """
    parameters: dict[str, str] = {}
    tags: dict[str, str] = {}
    for event, _ in read_events(run.events):
        values = {name: str(value) for name, value in event.values.items()}
        if event.kind == "parameters":
            parameters = values | parameters
        elif event.kind == "tags":
            tags |= values
    return parameters, tags


def read_status(run: RunFolder) -> str:
    """What a run said last of itself: `RUNNING` (also if it was killed), `FINISHED`, `FAILED` or `KILLED`."""
    return _course_of(run).status


def read_delivered_id(run: RunFolder) -> str | None:
    """MLflow's id of a run that it has all of; None if something of it is on this disk only."""
    note = read_note(run)
    is_whole = next(read_events(run.events, note.offset), None) is None
    return note.run_id if is_whole else None


def summarise_run(run: RunFolder) -> RunSummary:
    """What a run has come to."""
    course = _course_of(run)
    is_interrupted = course.status == "RUNNING" and not run.is_held()
    return RunSummary(
        name=run.name,
        experiment=run.experiment,
        task=run.task,
        status="interrupted" if is_interrupted else course.status,
        started=datetime.fromtimestamp(run.created / 1000, UTC).astimezone(),
        minutes=course.worked_ms / 60_000,
        best=course.best,
        undelivered=sum(1 for _ in read_events(run.events, read_note(run).offset)),
    )


@dataclass(slots=True)
class _Course:
    status: str = "RUNNING"
    worked_ms: int = 0
    best: dict[str, float] = field(default_factory=dict)


def _course_of(run: RunFolder) -> _Course:
    """Reads the log once, and of its many lines only those that a listing shows."""
    course, began, last = _Course(), None, b""
    if not run.events.exists():
        return course
    with run.events.open("rb") as file:
        for line in file:
            is_status = b'"kind":"status"' in line
            event = parse_event(line) if is_status or b'"' + BEST.encode() in line else None
            if event is not None and event.kind == "status":
                course.status = str(event.values["status"])
                if course.status == "RUNNING":
                    course.worked_ms += _span(began, last)
                    began = event.time
            elif event is not None and event.kind == "metrics":
                values = event.values.items()
                course.best |= {k.removeprefix(BEST): float(v) for k, v in values if k.startswith(BEST)}
            last = line if line.endswith(b"}\n") else last
    course.worked_ms += _span(began, last)
    return course


def _span(began: int | None, last: bytes) -> int:
    event = parse_event(last)
    return max(0, event.time - began) if event is not None and began is not None else 0
