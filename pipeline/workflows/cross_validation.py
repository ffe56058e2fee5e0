"""`clinseg train`: the fold that a job names, or all of them, one after the other, and their ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.config import Job, on_fold
from pipeline.data.folds import list_folds
from pipeline.errors import ConfigError, InputError
from pipeline.signals import StopSignals
from pipeline.tracking import (
    Delivery,
    RunFolder,
    deliver,
    find_child,
    find_run,
    read_settings,
    read_status,
    resume_record,
)
from pipeline.training.distributed import World, join_world
from pipeline.workflows.checking import check_cases
from pipeline.workflows.reporting import keep_report
from pipeline.workflows.runs.needs import Needs
from pipeline.workflows.runs.recording import describe_job, describe_whole
from pipeline.workflows.runs.resuming import CONFIG, check_fold, find_job
from pipeline.workflows.runs.starting import Start
from pipeline.workflows.tasks.columns import Part
from pipeline.workflows.tasks.named import COLUMNS
from pipeline.workflows.training import Place, TrainingResult, begin, ended_by_trouble, train


def train_folds(
    config: Path | None,
    overrides: Sequence[str] = (),
    resume: str | None = None,
    on_needs: Callable[[Needs], None] = lambda needs: None,
    on_start: Callable[[Start], None] = lambda start: None,
) -> TrainingResult | None:
    """Trains one network, or with `data.fold: all` one for every fold.

    Args:
        config: The job; left out when a run is resumed.
        overrides: `key=value` settings that replace the config's.
        resume: A run (or `latest`) to go on with; it keeps the config it was started with.
        on_needs: Is told what memory and disk each network takes before it is trained.
        on_start: Is told what each network takes from the model that it starts from, if any.

    Returns:
        What it left; None in all processes but the first, where several train together.

    Raises:
        FaultError: If config, data or the run to resume are wrong; all faults together.
        Stopped: If a signal ended it; everything so far is saved.
    """
    with StopSignals() as signals, join_world() as world:
        with world.first_alone():
            job, run = find_job(config, overrides, resume)
        if job.data.fold != "all":
            return train(job, run, signals, world, on_needs, on_start)
        return _train_all(job, run, signals, world, on_needs, on_start)


def _train_all(
    job: Job,
    run: RunFolder | None,
    signals: StopSignals,
    world: World,
    on_needs: Callable[[Needs], None],
    on_start: Callable[[Start], None],
) -> TrainingResult | None:
    """A network for every fold, and what the first process makes of all of them."""
    column = COLUMNS[job.task]
    with world.first_alone():
        cases = column.read_cases(job)
        folds = list_folds(cases, job.data)
        # Before the first fold is trained, not when it is the last one's turn.
        if run is None and world.is_first and (errors := check_cases(job, cases).errors):
            raise InputError(errors)
    if not world.is_first:
        whole = find_run(world.told_by_first(""))
        for number in folds:
            _train_fold(whole, job, number, signals, world, on_needs, on_start)
        world.leave()
        return None
    record = resume_record(run) if run is not None else begin(job)
    with ended_by_trouble(record, signals, world):
        describe_job(record, job)
        world.told_by_first(record.name)
        parts = []
        for number in folds:
            _train_fold(record.run, job, number, signals, world, on_needs, on_start)
            trained = find_child(record.run, _part(number))
            assert trained is not None, "it was trained"
            parts.append(Part(number, trained))
            record.log_metrics(column.summarise_fold(parts[-1]), step=number)
        world.leave()
        describe_whole(record, job, read_settings(parts[0].run)[1]["clinseg.data_hash"])
        judgement = column.join(record, job, parts)
        keep_report(record)
    deliveries = [record.close("FINISHED")]
    if deliveries[0].is_complete:
        deliveries += _deliver(parts)
    return TrainingResult(record.name, column.command, record.folder, "finished", judgement, deliveries)


def _deliver(parts: Sequence[Part]) -> list[Delivery]:
    """Takes the rest to MLflow of folds that ended before it had the run they are parts of."""
    deliveries = []
    for part in parts:
        with suppress(ConfigError):  # another process is doing it
            deliveries.append(deliver(part.run))
    return deliveries


def _train_fold(
    whole: RunFolder,
    job: Job,
    fold: int,
    signals: StopSignals,
    world: World,
    on_needs: Callable[[Needs], None],
    on_start: Callable[[Start], None],
) -> None:
    """Trains a fold, or goes on with it; one that is finished stays as it is."""
    place = Place(whole, _part(fold), check_fold)
    with world.first_alone():
        run = find_child(whole, place.name)
        is_finished = run is not None and read_status(run) == "FINISHED"
    if not is_finished:
        is_begun = run is not None and (run.path / CONFIG).is_file()
        train(on_fold(job, fold), run if is_begun else None, signals, world, on_needs, on_start, place)


def _part(fold: int) -> str:
    return f"fold{fold}"
