"""Which job a training is, a new one or that of a run to go on with, and what that run saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.checkpoint import Checkpoint, read_checkpoint
from pipeline.config import Job, load_job
from pipeline.errors import ConfigError, Fault, IntegrityError
from pipeline.tracking import RunFolder, find_run
from pipeline.training.distributed import World
from pipeline.workflows.runs.models import LAST
from pipeline.workflows.runs.starting import pin_start
from pipeline.workflows.tasks.columns import AbstractMaterial
from pipeline.workflows.tasks.regions import pin_region
from pipeline.workflows.tasks.segmentation_material import pin_labels
from pipeline.workflows.tasks.twins import pin_twin_maker

CONFIG = "config.yaml"
"""The job in a run's folder."""
SWEEP = "sweep.json"
"""What a sweep tries, in the folder of a run that is one."""
TRIALS = "trials.csv"
"""A row for each of its trials, there too."""


def find_job(
    config: Path | None, overrides: Sequence[str], resume: str | None
) -> tuple[Job, RunFolder | None]:
    """The job of a config with its overrides, or a run to go on with and the job it was started with.

    Raises:
        FaultError: If config or run are wrong; all faults together.
    """
    if config is not None and resume is not None:
        message = f"a resumed run keeps the config it was started with; leave {config} out, or --resume"
        raise ConfigError(Fault("CONFIG", "contradiction", message))
    run = find_run(resume) if resume is not None else None
    return _resumed_job(run, overrides) if run is not None else _new_job(config, overrides), run


def load_state(run: RunFolder, material: AbstractMaterial, world: World) -> Mapping[str, Any] | None:
    """What the run saved last; None if it was killed before it saved anything, to begin again."""
    if not (run.path / LAST).is_file():
        return None
    checkpoint = read_checkpoint(run.path / LAST, with_state=True)
    check_data(material, checkpoint, run)
    _check_meaning(material, checkpoint, run)
    for part, cases in (("training", material.split.training), ("validation", material.split.validation)):
        if set(checkpoint.provenance[f"{part}_cases"]) != {case.id for case in cases}:
            raise _changed(run, f"its {part} cases are not those it was started with")
    state = checkpoint.state
    assert isinstance(state, Mapping)
    num_processes = state.get("num_processes", 1)
    if num_processes != world.size:
        message = (
            f"{num_processes} processes trained it and {world.size} would go on; start as many as before"
        )
        raise ConfigError(Fault(run.name, "processes-changed", message))
    return state


def check_data(material: AbstractMaterial, checkpoint: Checkpoint, run: RunFolder) -> None:
    """Refuses to go on from a checkpoint that was trained on other files."""
    if checkpoint.provenance["data_hash"] != material.data_hash:
        raise _changed(run, "the files of its cases are not those it was started with")


def check_fold(material: AbstractMaterial, checkpoint: Checkpoint, run: RunFolder) -> None:
    """Refuses to train a fold with files whose roles or meaning have changed since another was trained.

    Args:
        material: Of the fold to train.
        checkpoint: What the other one kept.
        run: The other one's.
    """
    check_data(material, checkpoint, run)
    _check_meaning(material, checkpoint, run)
    held_out = {case.id for case in material.split.validation}
    if not held_out.isdisjoint(checkpoint.provenance["validation_cases"]):
        raise _changed(run, "the manifest's folds are not those that it was trained with")


def _check_meaning(material: AbstractMaterial, checkpoint: Checkpoint, run: RunFolder) -> None:
    now = material.labels, {name: tuple(values) for name, values in material.structures.items()}
    then = checkpoint.labels, {name: tuple(values) for name, values in checkpoint.structures.items()}
    if now != then:
        raise _changed(run, "its labels or classes are not those it was started with")
    if tuple(checkpoint.channels) != tuple(material.channels):
        raise _changed(run, "its image channels are not those it was started with")


def _changed(run: RunFolder, what: str) -> IntegrityError:
    return IntegrityError(Fault(run.name, "data-changed", f"{what}; start a new run"))


def _new_job(config: Path | None, overrides: Sequence[str]) -> Job:
    if config is None:
        message = "name a config, or a run to go on with: clinseg train CONFIG, clinseg train --resume RUN"
        raise ConfigError(Fault("CONFIG", "missing-argument", message))
    return pinned(load_job(config, overrides))


def pinned(job: Job) -> Job:
    """The job with all that may change: models named `latest`, regions that only the manifest names."""
    return pin_twin_maker(pin_region(pin_start(pin_labels(job))))


def _resumed_job(run: RunFolder, overrides: Sequence[str]) -> Job:
    """The run's own config; an override that says otherwise is refused, for it would be ignored."""
    stored = run.path / CONFIG
    if (run.path / SWEEP).is_file():
        message = f"it is a sweep; go on with: clinseg sweep --resume {run.name}"
        raise ConfigError(Fault(run.name, "is-a-sweep", message))
    job = load_job(stored)
    if overrides and load_job(stored, overrides) != job:
        message = "a resumed run keeps its config; leave --set and --fold out, or start a new run"
        raise ConfigError(Fault(run.name, "config-changed", message))
    return job
