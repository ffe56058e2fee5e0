"""What happened in a run, one JSON object a line, appended, never changed: the record that MLflow copies."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.files import resource_error

Kind = Literal["parameters", "tags", "metrics", "artifact", "dataset", "status"]
_KINDS = frozenset(get_args(Kind))


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: What it was.
        time: Milliseconds since 1970.
        values: Names and values; for an artifact `path` and `folder`, for a data set `name`, `digest`,
            `context`, `source` and maybe `num_cases`, for a status `status`.
        step: Training step of metrics; 0 elsewhere.
    """

    kind: Kind
    time: int
    values: Mapping[str, str | float]
    step: int = 0


class EventLog:
    """The end of a run's `events.jsonl`. A line costs microseconds and survives a kill of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise resource_error(path, error) from error
        size = os.fstat(self._file).st_size
        self._is_torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def append(self, event: Event) -> None:
        """Writes one line in one system call; after a torn line it begins a fresh one.

        Raises:
            ResourceError: If the disk is full or gone; the line is then torn and will be skipped by readers.
        """
        line = (b"\n" if self._is_torn else b"") + _line_of(event)
        self._is_torn = True
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise resource_error(self.path, error) from error
        self._is_torn = False

    def flush(self) -> None:
        """Returns when all lines would survive a power loss (milliseconds)."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise resource_error(self.path, error) from error

    def close(self) -> None:
        """Flushes and lets go of the file."""
        try:
            self.flush()
        finally:
            os.close(self._file)


def read_events(path: Path, start: int = 0) -> Iterator[tuple[Event, int]]:
    """Yields the events that begin at byte `start` or later, each with the offset of the byte behind it.

    A line still being written is left for the next reading; a line torn by a kill is skipped.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        offset = file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            event = parse_event(line)
            if event is not None:
                yield event, offset


def parse_event(line: bytes) -> Event | None:
    """The event of one line, or None if the line is torn or something else."""
    try:
        raw = json.loads(line)
        kind, values = raw["kind"], dict(raw["values"])
        if kind not in _KINDS:
            return None
        if kind == "metrics":
            values = {str(name): float(value) for name, value in values.items()}
        else:
            values = {str(name): str(value) for name, value in values.items()}
        return Event(kind, int(raw["time"]), values, int(raw.get("step", 0)))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _line_of(event: Event) -> bytes:
    raw = {"kind": event.kind, "time": event.time, "step": event.step, "values": _portable(event.values)}
    return json.dumps(raw, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _portable(values: Mapping[str, str | float]) -> dict[str, str | float]:
    """JSON has no word for `nan` and `inf`; they are written as strings and read back by `float`."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
