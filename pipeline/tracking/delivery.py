"""From the local log to MLflow: everything, in order, each point once, however often it is interrupted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from threading import Event as Signal
from typing import TYPE_CHECKING

from pipeline.tracking.events import Event, read_events
from pipeline.tracking.runs import DeliveryNote, RunFolder, read_note, write_note
from pipeline.tracking.store import NOTE_TAG, RUN_ID, Destination, is_refusal, portable_name, reason_of

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param, RunTag

_GROUP = 500  # events sent together
_SENT_ALONE = ("artifact", "dataset", "status")


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far a record has come.

    Attributes:
        run: The run's name.
        run_id: MLflow's id, once it has one.
        undelivered: Events that are on this disk only.
        refused: What MLflow refused for its content, each with the reason; it stays on this disk.
        problem: Why delivery stopped, in one line; None if it did not.
    """

    run: str
    run_id: str | None
    undelivered: int
    refused: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether MLflow has all that it will take."""
        return self.undelivered == 0


def deliver(run: RunFolder) -> Delivery:
    """Completes the record of a run that nobody is writing; one that ended without a word is ended as KILLED.

    Raises:
        ConfigError: If the run is being written now (its own process delivers it).
        ResourceError: If the run's folder cannot be written.
    """
    lock = run.hold()
    try:
        courier = Courier(run)
        courier.complete()
        return courier.report()
    finally:
        lock.release()


class Courier:
    """Carries the events of one run; remembers on disk how far it came. Only one may be at work on a run.

    Attributes:
        uri: Where it goes.
        cancelled: Once set, it stops after what it is doing.
    """

    def __init__(self, run: RunFolder) -> None:
        self.uri = run.uri
        self.cancelled = Signal()
        self._run = run
        self._note = read_note(run)
        self._destination: Destination | None = None
        self._is_in_doubt = True  # whether MLflow may have more than was noted
        self._problem: str | None = None

    def deliver_pending(self) -> bool:
        """Delivers all there is. On trouble it stops, remembers why and returns False; it raises nothing."""
        with self._keeping_trouble():
            while not self.cancelled.is_set() and (group := self._next_group()):
                self._deliver(self._destination or self._open(), group)
        return self._problem is None

    def complete(self) -> None:
        """Delivers all there is of a run that has ended, even if MLflow lost it, and ends it there."""
        with self._keeping_trouble():
            self._destination = self._open()
            if self.deliver_pending():
                self._end_interrupted(self._destination)

    def report(self) -> Delivery:
        """How far it came."""
        undelivered = sum(1 for _ in read_events(self._run.events, self._note.offset))
        return Delivery(self._run.name, self._note.run_id, undelivered, self._note.refused, self._problem)

    @contextmanager
    def _keeping_trouble(self) -> Iterator[None]:
        self._problem = None
        try:
            yield
        except Exception as error:  # whatever MLflow does must not reach the training
            self._problem = f"MLflow at {self.uri}: {reason_of(error)}"
            self._destination, self._is_in_doubt = None, True

    def _open(self) -> Destination:
        destination = Destination.open(self._run, self._note.run_id)
        if destination.run_id != self._note.run_id:  # it is new there, or was lost there and is made anew
            self._set_note(DeliveryNote(destination.run_id))
        return destination

    def _next_group(self) -> list[tuple[Event, int]]:
        """The next events that can be sent together, each with the offset behind it."""
        pending = list(islice(read_events(self._run.events, self._note.offset), _GROUP))
        if pending and self._destination is None:
            offset = self._note.offset
            self._destination = self._open()
            if self._note.offset != offset:
                return self._next_group()
        return list(takewhile(lambda item: item[0].kind not in _SENT_ALONE, pending)) or pending[:1]

    def _deliver(self, destination: Destination, group: list[tuple[Event, int]]) -> None:
        events, offset = [event for event, _ in group], group[-1][1]
        refused: list[str] = []
        if events[0].kind == "artifact":
            refused = self._upload(destination, events[0])
        elif events[0].kind == "dataset":
            refused = self._log_dataset(destination, events[0])
        elif events[0].kind == "status":
            destination.set_status(str(events[0].values["status"]), events[0].time)
        else:
            refused = self._log(destination, events)
        # The note must not run ahead of the log, even if the power fails.
        with self._run.events.open("rb") as file:
            os.fsync(file.fileno())
        self._set_note(replace(self._note, offset=offset, refused=(*self._note.refused, *refused)))

    def _upload(self, destination: Destination, event: Event) -> list[str]:
        """Uploads a file; returns the reason if it cannot be had any more."""
        name = str(event.values["path"])
        path = (self._run.path / name).resolve()
        if not path.is_relative_to(self._run.path.resolve()) or not path.is_file():
            return [f"artifact {name}: there is no such file in the run's folder"]
        destination.upload(path, str(event.values["folder"]))
        return []

    def _log_dataset(self, destination: Destination, event: Event) -> list[str]:
        """Notes data of the run; returns the reason if MLflow does not take them."""
        try:
            destination.log_dataset({name: str(value) for name, value in event.values.items()})
        except Exception as error:  # as below
            if not is_refusal(error):
                raise
            destination.check_active()
            return [f"data set {event.values['name']}: {reason_of(error)}"]
        return []

    def _log(self, destination: Destination, events: list[Event]) -> list[str]:
        """Logs metrics, parameters and tags together; returns what was refused, with the reasons."""
        metrics, parameters, tags = _entities(events, destination.run_id)
        if self._is_in_doubt and metrics:
            known = destination.points({metric.key for metric in metrics})
            fresh = [metric for metric in metrics if (metric.key, metric.step) not in known]
            self._is_in_doubt = len(fresh) < len(metrics)
            metrics = fresh
        try:
            destination.log(metrics, parameters, tags)
        except Exception as error:  # of any type: what is no refusal goes on
            if not is_refusal(error):
                raise
            destination.check_active()
            return _log_one_by_one(destination, metrics, parameters, tags)
        return []

    def _end_interrupted(self, destination: Destination) -> None:
        events = [event for event, _ in read_events(self._run.events)]
        statuses = [event.values["status"] for event in events if event.kind == "status"]
        if statuses and statuses[-1] == "RUNNING":
            destination.set_status("KILLED", events[-1].time)

    def _set_note(self, note: DeliveryNote) -> None:
        write_note(self._run, note)
        self._note = note


def _entities(events: list[Event], run_id: str) -> tuple[list[Metric], list[Param], list[RunTag]]:
    """The events in MLflow's words; of a tag set twice the later value. Notes name the run by its id."""
    from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415 - see store.prepare_mlflow

    metrics: list[Metric] = []
    parameters: dict[str, str] = {}
    tags: dict[str, str] = {}
    for event in events:
        values = {portable_name(name): value for name, value in event.values.items()}
        if event.kind == "metrics":
            metrics += [Metric(name, float(value), event.time, event.step) for name, value in values.items()]
        else:
            target = parameters if event.kind == "parameters" else tags
            target |= {name: str(value) for name, value in values.items()}
    if NOTE_TAG in tags:
        tags[NOTE_TAG] = tags[NOTE_TAG].replace(RUN_ID, run_id)
    return metrics, [Param(*item) for item in parameters.items()], [RunTag(*item) for item in tags.items()]


def _log_one_by_one(
    destination: Destination, metrics: list[Metric], parameters: list[Param], tags: list[RunTag]
) -> list[str]:
    """Logs all that MLflow takes of a batch that it refused; returns the rest, with the reasons."""
    refused = []
    singles = [
        *((f"metric {metric.key}", ([metric], [], [])) for metric in metrics),
        *((f"parameter {parameter.key}", ([], [parameter], [])) for parameter in parameters),
        *((f"tag {tag.key}", ([], [], [tag])) for tag in tags),
    ]
    for name, single in singles:
        try:
            destination.log(*single)
        except Exception as error:  # as above
            if not is_refusal(error):
                raise
            refused.append(f"{name}: {reason_of(error)}")
    return refused
