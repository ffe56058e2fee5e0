"""A sweep as its folder keeps it: what is tried, and the settings of the trials that have begun."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.config import Space, load_job, parse_space
from pipeline.errors import ConfigError, Fault
from pipeline.files import write_text
from pipeline.tracking import Record, find_run, resume_record
from pipeline.workflows.runs.models import pin_model
from pipeline.workflows.runs.resuming import SWEEP, pinned
from pipeline.workflows.runs.starting import find_start
from pipeline.workflows.training import begin


@dataclass(frozen=True, slots=True)
class Request:
    """What a sweep is asked to try.

    Attributes:
        choices: `key=a,b,…`.
        ranges: `key=low..high[:log]`.
        num_trials: Draws from them; None for every combination of choices.
    """

    choices: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    num_trials: int | None = None

    def space(self) -> Space:
        """What that means; raises `ConfigError` with all that is wrong."""
        return parse_space(self.choices, self.ranges)

    def pinned(self) -> Request:
        """The same with `latest` named for good, for in its own course that would be the sweep itself."""
        choices = self.space().choices.items()  # no setting but a model's name has that value
        return replace(
            self, choices=tuple(f"{key}={','.join(map(pin_model, tried))}" for key, tried in choices)
        )


@dataclass(frozen=True, slots=True)
class Course:
    """What was asked for, and what has begun.

    Attributes:
        request: What is tried.
        suggested: Settings of the trials begun so far, as text by dotted key.
    """

    request: Request
    suggested: tuple[Mapping[str, str], ...] = ()

    def with_next(self, settings: Mapping[str, str]) -> Course:
        """The same, one trial further."""
        return replace(self, suggested=(*self.suggested, settings))

    def write(self, folder: Path) -> None:
        """Keeps it in the sweep's folder."""
        facts = {**asdict(self.request), "suggested": [dict(settings) for settings in self.suggested]}
        write_text(folder / SWEEP, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")

    @staticmethod
    def read(folder: Path) -> Course:
        """What `write` kept."""
        facts = json.loads((folder / SWEEP).read_bytes())
        request = Request(tuple(facts["choices"]), tuple(facts["ranges"]), facts["num_trials"])
        return Course(request, tuple(facts["suggested"]))


def begin_sweep(config: Path | None, request: Request, overrides: Sequence[str]) -> tuple[Record, Course]:
    """A new sweep, once every combination, or else every value of the space, was seen to make a job."""
    if config is None:
        message = (
            "name a config, or a sweep to go on with: clinseg sweep CONFIG …, clinseg sweep --resume RUN"
        )
        raise ConfigError(Fault("CONFIG", "missing-argument", message))
    request = request.pinned()
    space = request.space()
    if request.num_trials is None and space.ranges:
        message = "a range has no end of values; say how many to draw: --trials N"
        raise ConfigError(Fault("--set-range", "sweep-space", message))
    job = pinned(load_job(config, overrides))
    if job.data.fold in ("all", "none"):
        message = "trials are trained on all cases but one fold, and judged by it; name it: --set data.fold=0"
        raise ConfigError(Fault("data.fold", "sweep-space", message))
    faults: dict[Fault, None] = {}
    for settings in space.combinations() if request.num_trials is None else space.corners():
        try:
            find_start(load_job(config, [*overrides, *as_overrides(settings)]))
        except ConfigError as error:
            faults |= dict.fromkeys(error.faults)
    if faults:
        raise ConfigError(faults)
    record, course = begin(job), Course(request)
    course.write(record.folder)
    return record, course


def resume_sweep(
    name: str, config: Path | None, request: Request, overrides: Sequence[str]
) -> tuple[Record, Course]:
    """A sweep to go on with; whatever else is said is refused, for it would be ignored."""
    run = find_run(name)
    if not (run.path / SWEEP).is_file():
        message = f"it is no sweep; go on with it by: clinseg train --resume {run.name}"
        raise ConfigError(Fault(run.name, "no-sweep", message))
    if config is not None or overrides or request != Request():
        message = "a resumed sweep keeps its config and space; name the run alone, or start a new sweep"
        raise ConfigError(Fault(run.name, "config-changed", message))
    return resume_record(run), Course.read(run.path)


def as_overrides(settings: Mapping[str, str]) -> list[str]:
    """Settings as `load_job` takes them."""
    return [f"{key}={value}" for key, value in settings.items()]
