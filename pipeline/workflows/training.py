"""One training: from a job to a checkpoint, its record and its validation masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint import read_checkpoint
from pipeline.config import SegmentationJob, job_parameters, job_to_yaml
from pipeline.data.datasets import PatchSampler
from pipeline.environment import environment
from pipeline.errors import Stopped
from pipeline.files import write_text
from pipeline.inference.components import Components
from pipeline.inference.evaluation import CaseMetrics
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
from pipeline.training.loop import Ending, Silence, Surroundings, fit
from pipeline.training.segmentation import SegmentationTask
from pipeline.workflows.judging import judge
from pipeline.workflows.keeping import Keeper
from pipeline.workflows.material import Material, load_material
from pipeline.workflows.models import BEST
from pipeline.workflows.needs import Needs, measure_needs, told_out_of_memory
from pipeline.workflows.resuming import CONFIG, check_data, load_state
from pipeline.workflows.starting import Start, find_start, write_start


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training left.

    Attributes:
        run: Its name.
        folder: Where everything of it lies.
        ending: How the training ended.
        rows: Metrics of the kept checkpoint per validation case and structure, on the patients' grids.
        deliveries: How much of its record MLflow has, and, once it has all of a cross-validation's, of each
            fold's.
        components: Where a cross-validation decided to keep largest components; else None.
        unjudged: Structures that are labelled in no validation case.
    """

    run: str
    folder: Path
    ending: Ending
    rows: list[CaseMetrics]
    deliveries: Sequence[Delivery]
    components: Components | None = None
    unjudged: tuple[str, ...] = ()


def train(
    job: SegmentationJob,
    run: RunFolder | None,
    signals: StopSignals,
    world: World,
    on_needs: Callable[[Needs], None],
    on_start: Callable[[Start], None],
    parent: RunFolder | None = None,
) -> TrainingResult | None:
    """Trains one network, keeps its best and last state, and judges it on the validation cases.

    Where several processes train together, the first alone writes, tells and judges.

    Args:
        job: What is trained.
        run: A run to go on with; None begins a new one.
        signals: Whether to stop.
        world: The processes that train together.
        on_needs: Is told what memory and disk it takes before it starts.
        on_start: Is told what it takes from the model that it starts from, if any.
        parent: The cross-validation that the run is a part of.

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
        material = load_material(job)
        for other in read_children(parent) if parent is not None else []:
            if (other.path / BEST).is_file():
                check_data(material, read_checkpoint(other.path / BEST), other)
        state = load_state(run, material, world) if run is not None else None
    world.check_agreement(f"{job_to_yaml(job)} {material.data_hash} {run and run.name}")
    task = build_task(job, material, device, start, world)
    sampler = build_sampler(job, material, task)
    if not world.is_first:
        _follow(task, sampler, state, signals)
        return None
    record = resume_record(run) if run is not None else begin(job, parent, start)
    with ended_by_trouble(record, signals, world):
        ending, rows = _train_and_judge(record, material, task, sampler, state, signals, on_needs)
    deliveries = (record.close("FINISHED"),)
    return TrainingResult(record.name, record.folder, ending, rows, deliveries, unjudged=material.unjudged)


def begin(job: SegmentationJob, parent: RunFolder | None = None, start: Start | None = None) -> Record:
    """The record of a new run, or of a new part of a cross-validation."""
    if parent is None:
        record = start_record(job.tracking.experiment, job.tracking.uri, job.task)
    else:
        record = start_child(parent, part_name(job.data.fold))
    if start is not None:
        write_start(record, start)  # before the config, with which the run can be resumed
    write_text(record.folder / CONFIG, job_to_yaml(job))
    return record


def part_name(fold: int | str) -> str:
    """What the part of a cross-validation is called that holds out `fold`."""
    return f"fold{fold}"


@contextmanager
def ended_by_trouble(record: Record, signals: StopSignals, world: World = ALONE) -> Iterator[None]:
    """Ends the record if what is done in it does not end well; a signal's end says how to go on."""
    try:
        yield
    except Stopped as stopped:
        # When another process was lost, torchrun's signal comes while the record is being closed.
        with signals.deferred():
            record.close("KILLED")
        # A fold of a cross-validation, which is trained alone, gives advice; that of the whole replaces it.
        reason = f"{stopped}; " if stopped.args and world.size > 1 else ""
        program = "clinseg" if world.size == 1 else "torchrun (as before) -m pipeline"
        raise Stopped(f"{reason}go on with: {program} train --resume {record.name}") from None
    except BaseException:
        record.close("FAILED")
        raise


def _train_and_judge(
    record: Record,
    material: Material,
    task: SegmentationTask,
    sampler: PatchSampler,
    state: Mapping[str, Any] | None,
    signals: StopSignals,
    on_needs: Callable[[Needs], None],
) -> tuple[Ending, list[CaseMetrics]]:
    _describe(record, material, task)
    on_needs(measure_needs(task, sampler, material, record.folder, task.device))
    with freed_memory_kept():
        with budget_bar(f"Training {record.name}") as show, signals.deferred():
            keeper = Keeper(record, task.job, material, task, show, signals)
            ending = _fit(task, sampler, keeper, state)
        keeper.keep_something()
        return ending, judge(record, task.job, material, task.device)


def _follow(
    task: SegmentationTask, sampler: PatchSampler, state: Mapping[str, Any] | None, signals: StopSignals
) -> None:
    """What all processes but the first do: their share of every step, and nothing that is written."""
    with told_out_of_memory():
        task.rehearse(sampler.draw(0))  # with the first, which measures it
    with freed_memory_kept(), signals.deferred():
        _fit(task, sampler, Silence(signals), state)


def _fit(
    task: SegmentationTask, sampler: PatchSampler, surroundings: Surroundings, state: Mapping[str, Any] | None
) -> Ending:
    with told_out_of_memory():
        ending = fit(task, sampler, task.job.training, surroundings, state, task.world)
    # Who ended first would have torchrun end the others, while the last state is being written.
    task.world.leave()
    if ending == "interrupted":
        raise Stopped
    return ending


def build_task(
    job: SegmentationJob, material: Material, device: torch.device, start: Start | None, world: World = ALONE
) -> SegmentationTask:
    """What a job trains, with fresh weights or those of the model it starts from."""
    if job.training.deterministic:
        # cuBLAS repeats itself only with a workspace of fixed size; it must be said before CUDA starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    num_channels = len(material.study.channels)
    source = start.source if start is not None else None
    return SegmentationTask(job, material.contract, num_channels, material.validation, device, source, world)


def build_sampler(job: SegmentationJob, material: Material, task: SegmentationTask) -> PatchSampler:
    """Gives the batches of a job's steps."""
    section = job.training
    return PatchSampler(
        material.training,
        section.patch_size,
        task.augmentation.source_size,
        section.batch_size,
        section.foreground_fraction,
        section.seed,
        share=(task.world.rank, task.world.size),
    )


def _describe(record: Record, material: Material, task: SegmentationTask) -> None:
    job = task.job
    record.log_parameters(job_parameters(job))
    record.set_tags(
        {
            "clinseg.data_hash": material.data_hash,
            "clinseg.device": torch.cuda.get_device_name() if task.device.type == "cuda" else "cpu",
            "clinseg.fold": str(job.data.fold),
            "clinseg.num_processes": str(task.world.size),
            "clinseg.num_training_cases": str(len(material.training)),
            "clinseg.num_validation_cases": str(len(material.validation)),
            **{f"environment.{name}": version for name, version in environment().items()},
        }
    )
    for path in material.write_split(record.folder), record.folder / CONFIG:
        record.log_artifact(path)
