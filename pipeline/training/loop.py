"""The training loop: time, checkpoints and the record; it knows no task.

Everything random is derived from the seed and the step's number, so a state taken at any step continues as
if nothing had happened. Losses stay on the device until an epoch ends. Where several processes train, all run
this loop, and agree on the time and on whether to stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from pipeline.config import LoopSection
from pipeline.data.batches import Batch, derive_seed
from pipeline.signals import StopSignals
from pipeline.training.distributed import ALONE, World
from pipeline.training.divergence import check_finite
from pipeline.training.task import AbstractTask


class Sampler(Protocol):
    """Where batches come from: a function of the seed and the step's number."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(B, C, *source_size)` of the images of a batch."""

    def draw(self, step: int) -> Batch:
        """The batch of a step."""

    def iterate(self, first_step: int) -> Generator[Batch]:
        """Batches from a step on, endlessly."""


class Surroundings(Protocol):
    """What the loop tells the world and asks of it."""

    def log_metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """Records what an epoch gave."""

    def save_best(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Keeps the task's weights as the best so far."""

    def save_last(self, state: Mapping[str, Any], epoch: int) -> None:
        """Keeps everything needed to go on from here."""

    def advance(self, progress: float, epoch: int) -> None:
        """Shows how far the budget is used up."""

    def is_stop_requested(self) -> bool:
        """Whether a signal asked to stop."""

    def is_given_up(self) -> bool:
        """Whether, by what an epoch gave, it is not worth going on."""


class Silence:
    """The surroundings of a process that only takes part: nothing is told, and signals are its own."""

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals

    def log_metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """Nothing."""

    def save_best(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Nothing."""

    def save_last(self, state: Mapping[str, Any], epoch: int) -> None:
        """Nothing."""

    def advance(self, progress: float, epoch: int) -> None:
        """Nothing."""

    def is_stop_requested(self) -> bool:
        """Whether a signal arrived here."""
        return self.signals.is_requested

    def is_given_up(self) -> bool:
        """Not here: that is the first process's word."""
        return False


@dataclass
class Position:
    """Where a training is; with the task's state, all that a resumed one needs.

    Attributes:
        step: Steps done.
        epoch: Epochs finished.
        elapsed_s: Seconds of training so far, over all interruptions.
        best: Best value of the task's metric; minus infinity before the first validation.
        num_stale: Validations since then.
        is_given_up: Whether, by what the latest epoch gave, it is not worth going on.
        loss_sums: Sum of each loss over the steps of the epoch under way.
        epoch_steps: Steps of the epoch under way.
        epoch_s: Seconds of it.
    """

    step: int = 0
    epoch: int = 0
    elapsed_s: float = 0.0
    best: float = -math.inf
    num_stale: int = 0
    is_given_up: bool = False
    loss_sums: dict[str, Tensor] = field(default_factory=dict)
    epoch_steps: int = 0
    epoch_s: float = 0.0


Ending = Literal["finished", "stopped early", "interrupted"]


def fit(
    task: AbstractTask,
    sampler: Sampler,
    section: LoopSection,
    surroundings: Surroundings,
    state: Mapping[str, Any] | None = None,
    world: World = ALONE,
) -> Ending:
    """Trains `task` until its budget is used up, it stops improving, is given up, or a signal asks to stop.

    Args:
        task: What is trained.
        sampler: Gives the batch of each step.
        section: Budget and validation.
        surroundings: Record, checkpoints, progress and signals.
        state: What `save_last` was given, to go on from there.
        world: The processes that train together.

    Returns:
        How it ended. An interrupted training has saved its last state.

    Raises:
        DivergedError: If an epoch ends with weights that are not numbers; they are kept nowhere.
    """
    position = Position()
    if state is not None:
        position = Position(**state["position"])
        task.load_state_dict(state["task"])
    clock = _Clock(position, world)
    batches = sampler.iterate(position.step)
    try:
        while True:
            (is_stopped,) = world.largest([surroundings.is_stop_requested()])
            if is_stopped:  # asked first: a signal during the last epoch's end is one as well
                surroundings.save_last(_capture(task, position, world), position.epoch)
                return "interrupted"
            if _progress(position, section) >= 1:
                return "finished"
            is_stale = task.patience is not None and position.num_stale >= task.patience
            if is_stale or position.is_given_up:
                return "stopped early"
            # What a network draws by itself (dropout) is a function of these numbers as well.
            torch.manual_seed(derive_seed(section.seed, "step", position.step, world.rank))
            losses = task.training_step(next(batches), _progress(position, section))
            _count_step(position, losses)
            clock.tick()
            surroundings.advance(_progress(position, section), position.epoch)
            is_over = _progress(position, section) >= 1
            if is_over or position.epoch_steps == section.steps_per_epoch:
                _end_epoch(task, position, section, surroundings, world, validates=is_over)
                # Kept with the rest: a resumed training asks no epoch again.
                position.is_given_up = any(world.largest([surroundings.is_given_up()]))
                clock.tick()
                surroundings.save_last(_capture(task, position, world), position.epoch)
    finally:
        batches.close()


class _Clock:
    """Adds the time that passes to a position; one that was interrupted goes on from what it had.

    The first process's time is everybody's, so that all see the budget end at the same step.
    """

    def __init__(self, position: Position, world: World) -> None:
        self.position = position
        self.world = world
        self.last = time.monotonic()

    def tick(self) -> None:
        now = time.monotonic()
        (passed,) = self.world.largest([now - self.last if self.world.is_first else 0.0])
        self.position.elapsed_s += passed
        self.position.epoch_s += passed
        self.last = now


def _progress(position: Position, section: LoopSection) -> float:
    """Share of the budget used up; with two budgets, of the one that ends first."""
    shares = [0.0]
    if section.epochs is not None:
        shares.append(position.step / (section.epochs * section.steps_per_epoch))
    if section.minutes is not None:
        shares.append(position.elapsed_s / (60 * section.minutes))
    return min(1.0, max(shares))


def _count_step(position: Position, losses: Mapping[str, Tensor]) -> None:
    position.step += 1
    position.epoch_steps += 1
    for name, loss in losses.items():
        # Double precision on the device: a sum of thousands of steps keeps its digits, and nobody waits.
        position.loss_sums[name] = position.loss_sums.get(name, 0) + loss.double()


def _end_epoch(
    task: AbstractTask,
    position: Position,
    section: LoopSection,
    surroundings: Surroundings,
    world: World,
    *,
    validates: bool,
) -> None:
    position.epoch += 1
    metrics = {name: float(total) / position.epoch_steps for name, total in position.loss_sums.items()}
    check_finite(task.weights(), metrics, position.epoch)  # before anything is judged or kept
    metrics["training/learning_rate"] = task.learning_rate
    metrics["training/epoch_seconds"] = position.epoch_s
    num_patches = position.epoch_steps * section.batch_size * world.size
    metrics["training/patches_per_second"] = num_patches / position.epoch_s
    if validates or position.epoch % section.validate_every == 0:
        validation = task.validate()
        metrics |= validation
        value = validation[task.metric] if validation and task.metric is not None else None
        if value is not None and value > position.best:
            position.best, position.num_stale = value, 0
            surroundings.save_best(validation, position.epoch)
        elif value is not None:
            position.num_stale += 1
    surroundings.log_metrics(metrics, position.epoch)
    position.loss_sums, position.epoch_steps, position.epoch_s = {}, 0, 0.0


def _capture(task: AbstractTask, position: Position, world: World) -> dict[str, Any]:
    return {"position": asdict(position), "task": task.state_dict(), "num_processes": world.size}
