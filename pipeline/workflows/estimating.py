"""`clinseg train --dry-run`: what a training would take on this machine, from 20 real steps thrown away."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from pipeline.config import Job, LoopSection, load_job, on_fold
from pipeline.data.folds import list_folds
from pipeline.inference.predictor import select_device
from pipeline.memory import (
    UnmeasurableError,
    available_bytes,
    format_size,
    freed_memory_kept,
    measure_peak,
    resident_bytes,
)
from pipeline.tracking import STORE
from pipeline.training.distributed import join_world
from pipeline.training.loop import Sampler
from pipeline.training.task import AbstractTask
from pipeline.workflows.runs.needs import Need, Needs, measure_needs, told_out_of_memory
from pipeline.workflows.runs.starting import find_start
from pipeline.workflows.tasks.named import COLUMNS
from pipeline.workflows.training import build_task

_NUM_STEPS, _NUM_WARMING_UP = 20, 5


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a training would take.

    Attributes:
        needs: Memory and disk.
        cache: Bytes of the prepared cases, which are on the disk by now.
        step_s: Seconds of a step.
        validation_s: Seconds of a validation; 0 if no case validates.
        num_steps: Steps in the budget.
        num_validations: Validations in the budget, the last one at its end.
        minutes: Minutes until the budget is used up.
        num_folds: Trainings like that, one after the other, of a cross-validation.
    """

    needs: Needs
    cache: int
    step_s: float
    validation_s: float
    num_steps: int
    num_validations: int
    minutes: float
    num_folds: int = 1

    def with_budget(self, section: LoopSection) -> Estimate:
        """The same machine with another budget, or other epochs and validations."""
        steps, validations, minutes = _fill_budget(section, self.step_s, self.validation_s)
        return replace(self, num_steps=steps, num_validations=validations, minutes=minutes)

    def lines(self) -> list[str]:
        """A few lines for people."""
        budget = f"{self.minutes:.3g} minutes: {self.num_steps} steps of {self.step_s:.3g} s"
        if self.validation_s:
            plural = "s" * (self.num_validations != 1)
            budget += f", {self.num_validations} validation{plural} of {self.validation_s:.3g} s"
        if self.num_folds > 1:
            budget = f"each of {self.num_folds} folds takes {budget}"
        return [budget, str(self.needs), f"its prepared cases take {format_size(self.cache)} of disk already"]


def estimate(config: Path, overrides: Sequence[str] = ()) -> Estimate:
    """Estimates what training a config would take; prepares its cases, and leaves nothing else behind.

    Raises:
        FaultError: As a training would; a ResourceError if memory or disk do not suffice.
        Stopped: If the first of several processes was told that one alone can do this.
    """
    with join_world() as world:
        world.check_alone("--dry-run", "leave torchrun out; several share the steps of a training evenly")
    job = load_job(config, overrides)
    if job.data.fold != "all":
        return estimate_job(job)
    folds = list_folds(COLUMNS[job.task].read_cases(job), job.data)
    return replace(estimate_job(on_fold(job, folds[0])), num_folds=len(folds))


def estimate_job(job: Job) -> Estimate:
    """As `estimate`, for a job whose paths are absolute."""
    device = select_device(job.training.device)
    start = find_start(job)
    column = COLUMNS[job.task]
    material = column.load_material(job)
    task = build_task(job, material.with_one_validation(), device, start)
    sampler = column.build_sampler(job, material, task)
    folder = next(path for path in (STORE.absolute(), *STORE.absolute().parents) if path.exists())
    needs = measure_needs(task, sampler, material.result_bytes, folder, device)
    needs, (step_s, case_s) = _try_out(task, sampler, needs, device)
    validation_s = case_s / material.validation_share if material.validation_share else 0.0
    num_steps, num_validations, minutes = _fill_budget(job.training, step_s, validation_s)
    return Estimate(
        needs=needs.check(),
        cache=material.cache_bytes,
        step_s=step_s,
        validation_s=validation_s,
        num_steps=num_steps,
        num_validations=num_validations,
        minutes=minutes,
    )


def _try_out(
    task: AbstractTask, sampler: Sampler, needs: Needs, device: torch.device
) -> tuple[Needs, list[float]]:
    """Trains and validates a little: the needs with the larger peak, seconds of a step and of a case."""
    times: list[float] = []

    def run() -> None:
        times[:] = [_time_step(task, sampler, device), _time(task.validate)]

    is_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if is_gpu else resident_bytes()
    peak = None
    with told_out_of_memory(), freed_memory_kept():
        try:
            peak = before + measure_peak(run, device)
        except UnmeasurableError:
            run()
    parts = [needs.parts[0].at_least(peak), *needs.parts[1:]]
    if is_gpu:
        own = resident_bytes()
        parts.insert(1, Need("memory", own, own + available_bytes()))
    return Needs(tuple(parts)), times


def _time_step(task: AbstractTask, sampler: Sampler, device: torch.device) -> float:
    """Median seconds of a step, once the library has found its way."""
    batches = sampler.iterate(0)

    def step() -> None:
        task.training_step(next(batches), 0.0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    try:
        return median([_time(step) for _ in range(_NUM_STEPS)][_NUM_WARMING_UP:])
    finally:
        batches.close()


def _time(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


def _fill_budget(section: LoopSection, step_s: float, validation_s: float) -> tuple[int, int, float]:
    """Steps, validations and minutes, by the rules of the training loop."""
    steps_between = section.steps_per_epoch * section.validate_every
    num_steps = math.inf
    if section.epochs is not None:
        num_steps = section.epochs * section.steps_per_epoch
    if section.minutes is not None:
        num_steps = min(num_steps, 60 * section.minutes / (step_s + validation_s / steps_between))
    steps = max(1, round(num_steps))
    num_validations = math.ceil(steps / steps_between)
    minutes = (steps * step_s + num_validations * validation_s) / 60
    return steps, num_validations, min(minutes, section.minutes or math.inf)
