"""One training: from a job to a checkpoint, its record and its validation masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint import Checkpoint, read_checkpoint
from pipeline.config import Job, job_to_yaml
from pipeline.errors import Stopped
from pipeline.files import write_text
from pipeline.inference.predictor import select_device
from pipeline.memory import freed_memory_kept
from pipeline.progress import budget_bar
from pipeline.signals import StopSignals
from pipeline.tracking import (
    Delivery,
    Record,
    RunFolder,
    read_children,
    resume_record,
    start_child,
    start_record,
)
from pipeline.training.distributed import ALONE, World, own_device
from pipeline.training.loop import Ending, Sampler, Silence, Surroundings, fit
from pipeline.training.task import AbstractTask
from pipeline.workflows.reporting import keep_report
from pipeline.workflows.runs.keeping import Keeper
from pipeline.workflows.runs.models import BEST
from pipeline.workflows.runs.needs import Needs, measure_needs, told_out_of_memory
from pipeline.workflows.runs.recording import describe_job, describe_material, record_ending
from pipeline.workflows.runs.resuming import CONFIG, load_state
from pipeline.workflows.runs.starting import Start, find_start, write_start
from pipeline.workflows.tasks.columns import AbstractMaterial, Judgement
from pipeline.workflows.tasks.named import COLUMNS


@dataclass(frozen=True, slots=True)
class Place:
    """Where a training stands that is a part of another run.

    Attributes:
        parent: The run that it is a part of.
        name: Such as `fold0` or `trial3`.
        check: Refuses data that are not those of another part, given what that one kept.
        is_hopeless: Asked of each validation, with the task's metric and the epoch, whether to give up.
    """

    parent: RunFolder
    name: str
    check: Callable[[AbstractMaterial, Checkpoint, RunFolder], None]
    is_hopeless: Callable[[float, int], bool] = lambda metric, epoch: False


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training left.

    Attributes:
        run: Its name.
        command: What applies its model.
        folder: Where everything of it lies.
        ending: How the training ended.
        judgement: What came of the validation cases with the kept checkpoint.
        deliveries: How much of its record MLflow has, and, once it has all of a cross-validation's, of each
            fold's.
    """

    run: str
    command: str
    folder: Path
    ending: Ending
    judgement: Judgement
    deliveries: Sequence[Delivery]


def train(
    job: Job,
    run: RunFolder | None,
    signals: StopSignals,
    world: World,
    on_needs: Callable[[Needs], None],
    on_start: Callable[[Start], None],
    place: Place | None = None,
) -> TrainingResult | None:
    """Trains one network, keeps its best and last state, and judges it on the validation cases.

    Where several processes train together, the first alone writes, tells and judges.

    Args:
        job: What is trained.
        run: A run to go on with; None begins a new one.
        signals: Whether to stop.
        world: The processes that train together; they part after the last step, unless it is part of a run.
        on_needs: Is told what memory and disk it takes before it starts.
        on_start: Is told what it takes from the model that it starts from, if any.
        place: The cross-validation or sweep that the run is a part of, if any.

    Returns:
        What it left; None in all processes but the first.

    Raises:
        FaultError: If model, data or the run to resume are wrong; all faults together.
        Stopped: If a signal ended it, or another process of it was lost; everything so far is saved.
    """
    # The others then find the cases prepared; faults that all would find are told once.
    with world.first_alone():
        device = own_device(select_device(job.training.device), world)
        start = find_start(job, run)
        if start is not None and world.is_first:
            on_start(start)
        column = COLUMNS[job.task]
        material = column.load_material(job, run)
        if place is not None:
            for other in read_children(place.parent):
                is_itself = run is not None and other.name == run.name
                if not is_itself and (other.path / BEST).is_file():
                    place.check(material, read_checkpoint(other.path / BEST), other)
        state = load_state(run, material, world) if run is not None else None
    world.check_agreement(f"{job_to_yaml(job)} {material.data_hash} {run and run.name}")
    task = build_task(job, material, device, start, world)
    sampler = column.build_sampler(job, material, task)
    if not world.is_first:
        _follow(job, task, sampler, state, signals, world, is_part=place is not None)
        return None
    record = resume_record(run) if run is not None else begin(job, place, start)
    with ended_by_trouble(record, signals, world, is_part=place is not None):
        describe_job(record, job)
        describe_material(record, job, material, device, world.size)
        on_needs(measure_needs(task, sampler, material.result_bytes, record.folder, device))
        with freed_memory_kept():
            with budget_bar(f"Training {record.name}") as show, signals.deferred():
                keeper = Keeper(
                    record,
                    job,
                    material,
                    task,
                    lambda epoch: column.illustrate(record, job, material, task, epoch),
                    show,
                    signals,
                    *([place.is_hopeless] if place is not None else []),
                )
                ending = _fit(job, task, sampler, keeper, state, world, is_part=place is not None)
            signals.check()  # one that came since the loop last asked
            keeper.keep_something()
            record_ending(record, ending)
            judgement = column.judge(record, job, material, device)
            keep_report(record)
    deliveries = (record.close("FINISHED"),)
    return TrainingResult(record.name, column.command, record.folder, ending, judgement, deliveries)


def begin(job: Job, place: Place | None = None, start: Start | None = None) -> Record:
    """The record of a new run, or of a new part of a cross-validation or sweep."""
    if place is None:
        record = start_record(job.tracking.experiment, job.tracking.uri, job.task)
    else:
        record = start_child(place.parent, place.name)
    if start is not None:
        write_start(record, start)  # before the config, with which the run can be resumed
    write_text(record.folder / CONFIG, job_to_yaml(job))
    return record


@contextmanager
def ended_by_trouble(
    record: Record,
    signals: StopSignals,
    world: World = ALONE,
    command: str = "train",
    *,
    is_part: bool = False,
) -> Iterator[None]:
    """Ends the record if what is done in it ends badly; after a signal the whole says how to go on."""
    try:
        yield
    except Stopped as stopped:
        # When another process was lost, torchrun's signal comes while the record is being closed.
        with signals.deferred():
            record.close("KILLED")
        if is_part:
            raise
        reason = f"{stopped}; " if stopped.args and world.size > 1 else ""
        program = "clinseg" if world.size == 1 else "torchrun (as before) -m pipeline"
        raise Stopped(f"{reason}go on with: {program} {command} --resume {record.name}") from None
    except BaseException:
        record.close("FAILED")
        raise


def _follow(
    job: Job,
    task: AbstractTask,
    sampler: Sampler,
    state: Mapping[str, Any] | None,
    signals: StopSignals,
    world: World,
    *,
    is_part: bool,
) -> None:
    """What all processes but the first do: their share of every step, and nothing that is written."""
    with told_out_of_memory():
        task.rehearse(sampler.draw(0))  # with the first, which measures it
    with freed_memory_kept(), signals.deferred():
        _fit(job, task, sampler, Silence(signals), state, world, is_part=is_part)


def _fit(
    job: Job,
    task: AbstractTask,
    sampler: Sampler,
    surroundings: Surroundings,
    state: Mapping[str, Any] | None,
    world: World,
    *,
    is_part: bool,
) -> Ending:
    with told_out_of_memory():
        ending = fit(task, sampler, job.training, surroundings, state, world)
    # Who ended first would have torchrun end the others, while the last state is being written.
    if is_part:
        world.wait()
    else:
        world.leave()
    if ending == "interrupted":
        raise Stopped
    return ending


def build_task(
    job: Job, material: AbstractMaterial, device: torch.device, start: Start | None, world: World = ALONE
) -> AbstractTask:
    """What a job trains, with fresh weights or those of the model it starts from."""
    if job.training.deterministic:
        # cuBLAS repeats itself only with a workspace of fixed size; it must be said before CUDA starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    task: AbstractTask = COLUMNS[job.task].build_task(job, material, device, start, world)
    return task
