"""`clinseg sweep`: the same job with other settings, trial after trial, and the best of them."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import Space, load_job
from pipeline.data.batches import derive_seed
from pipeline.errors import ConfigError, Fault, ResourceError
from pipeline.files import check_writable, write_text
from pipeline.signals import StopSignals
from pipeline.tracking import (
    BEST,
    Delivery,
    Record,
    RunFolder,
    deliver,
    find_child,
    read_children,
    read_metrics,
    read_settings,
    read_status,
    summarise_run,
)
from pipeline.training.distributed import ALONE, join_world
from pipeline.training.divergence import DivergedError
from pipeline.workflows.reporting import keep_report
from pipeline.workflows.runs.models import WINNER_TAG
from pipeline.workflows.runs.recording import ENDING, describe_job
from pipeline.workflows.runs.resuming import CONFIG, SWEEP, TRIALS, check_data
from pipeline.workflows.runs.starting import find_start
from pipeline.workflows.sweeps.course import Request, as_overrides, begin_sweep, resume_sweep
from pipeline.workflows.sweeps.suggesting import Outcome, build_pruner, suggest
from pipeline.workflows.tasks.columns import Column
from pipeline.workflows.tasks.named import COLUMNS
from pipeline.workflows.training import Place, ended_by_trouble, train

WINNER = "winner.yaml"


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a sweep.

    Attributes:
        run: Its run's name.
        settings: What was tried in it, as text by dotted key.
        score: What it is judged by; None if it failed.
        ending: How its training ended, or why it failed.
        minutes: What it took.
    """

    run: str
    settings: Mapping[str, str]
    score: float | None
    ending: str
    minutes: float


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        run: Its name; trials are runs in it.
        folder: Where its table lies.
        score: Name of what trials are judged by.
        trials: In their order.
        winner: The best of them.
        config: The winner's complete config.
        command: What applies its model.
        deliveries: How much of the records MLflow has.
    """

    run: str
    folder: Path
    score: str
    trials: Sequence[Trial]
    winner: Trial
    config: Path
    command: str
    deliveries: Sequence[Delivery]


def sweep(
    config: Path | None,
    request: Request,
    overrides: Sequence[str] = (),
    resume: str | None = None,
    output: Path | None = None,
    on_trial: Callable[[int, int, Mapping[str, str]], None] = lambda number, total, settings: None,
) -> SweepResult:
    """Trains every combination of choices, or as many draws from choices and ranges as are asked for.

    Draws follow what earlier trials came to, and one that falls behind their median is ended early.

    Args:
        config: The job; left out when a sweep is resumed.
        request: What is tried; empty when a sweep is resumed.
        overrides: `key=value` settings of all trials.
        resume: A sweep (or `latest`) to go on with.
        output: Where the winner's config is written as well; no file may be there.
        on_trial: Is told number, total and settings of each trial before it is trained.

    Raises:
        FaultError: If something is wrong with job, space or data; all faults together.
        Stopped: If a signal ended it; everything so far is saved.
    """
    if output is not None:
        _check_output(output)
    with StopSignals() as signals, join_world() as world:
        world.check_alone("sweep", "train one trial after the other: leave torchrun out")
        if resume is None:
            record, course = begin_sweep(config, request, overrides)
        else:
            record, course = resume_sweep(resume, config, request, overrides)
        job = load_job(record.folder / CONFIG)
        column, space = COLUMNS[job.task], course.request.space()
        trials: list[Trial] = []
        with ended_by_trouble(record, signals, command="sweep"):
            describe_job(record, job)
            total = course.request.num_trials or sum(1 for _ in space.combinations())
            for number in range(total):
                outcomes = [_outcome(record.run, trial, column.metric) for trial in trials]
                if number == len(course.suggested):
                    course = course.with_next(_next(course.request, space, job.training.seed, outcomes))
                    course.write(record.folder)
                settings = course.suggested[number]
                on_trial(number, total, settings)
                place = Place(record.run, f"trial{number}", check_data)
                if course.request.num_trials is not None:
                    place = replace(place, is_hopeless=build_pruner(space, settings, outcomes))
                trials.append(_train(record, place, settings, column, signals))
                _tell(record, trials, column.score)
            winner = max(trials, key=lambda trial: -math.inf if trial.score is None else trial.score)
            if winner.score is None:
                raise ResourceError([Fault(trial.run, "trial-failed", trial.ending) for trial in trials])
            _keep_winner(record, winner, column.score, output)
            keep_report(record)
        deliveries = [record.close("FINISHED")]
        if deliveries[0].is_complete:
            deliveries += [deliver(run) for run in read_children(record.run)]
    return SweepResult(
        record.name,
        record.folder,
        column.score,
        trials,
        winner,
        output or record.folder / WINNER,
        column.command,
        deliveries,
    )


def _next(request: Request, space: Space, seed: int, outcomes: Sequence[Outcome]) -> dict[str, str]:
    number = len(outcomes)
    if request.num_trials is None:
        return next(itertools.islice(space.combinations(), number, None))
    return suggest(space, derive_seed(seed, "trial", number) % 2**32, outcomes)


def _train(
    record: Record,
    place: Place,
    settings: Mapping[str, str],
    column: Column[Any, Any, Any],
    signals: StopSignals,
) -> Trial:
    """Trains, or goes on with a trial; a finished one stays, one that lacks memory or diverges has failed."""
    run, trouble = find_child(record.run, place.name), None
    if run is None or read_status(run) != "FINISHED":
        is_begun = run is not None and (run.path / CONFIG).is_file()
        if is_begun and column.metric is not None:
            assert run is not None
            for epoch, value in read_metrics(run).get(column.metric, []):
                place.is_hopeless(value, epoch)
        try:
            job = load_job(record.folder / CONFIG, as_overrides(settings))
            find_start(job, run if is_begun else None)
        except ConfigError as error:  # what was drawn contradicts itself, or the model that it starts from
            return Trial(place.name, settings, None, str(error), 0.0)
        try:
            train(job, run if is_begun else None, signals, ALONE, _silent, _silent, place)
        except (ResourceError, DivergedError) as error:
            trouble = str(error)
        run = find_child(record.run, place.name)
    if run is None:
        return Trial(place.name, settings, None, trouble or "it did not begin", 0.0)
    summary = summarise_run(run)
    score = summary.best.get(column.score.removeprefix(BEST)) if trouble is None else None
    if score is None and trouble is None:
        message = f"it has no {column.score}, by which trials are judged; are there validation cases?"
        raise ConfigError(Fault(run.name, "no-score", message))
    _, tags = read_settings(run)
    return Trial(run.name, settings, score, trouble or tags.get(ENDING, ""), summary.minutes)


def _outcome(parent: RunFolder, trial: Trial, metric: str | None) -> Outcome:
    """What Optuna is told of a trial."""
    run = next((run for run in read_children(parent) if run.name == trial.run), None)
    course = read_metrics(run).get(metric, []) if run is not None and metric is not None else []
    return Outcome(trial.settings, trial.score, dict(course))


def _tell(record: Record, trials: Sequence[Trial], score: str) -> None:
    """Writes the table of the trials so far, and the last one's score into the record."""
    file = io.StringIO(newline="")
    table = csv.writer(file, lineterminator="\n")
    keys = list(trials[0].settings)
    table.writerow(["run", score.removeprefix(BEST), "ending", "minutes", *keys])
    for trial in trials:
        told = "" if trial.score is None else f"{trial.score:.6g}"
        values = [trial.settings[key] for key in keys]
        table.writerow([trial.run, told, trial.ending, f"{trial.minutes:.2f}", *values])
    write_text(record.folder / TRIALS, file.getvalue())
    if trials[-1].score is not None:
        name = score.removeprefix(BEST)
        record.log_metrics({f"trials/{name}": trials[-1].score}, step=len(trials) - 1)


def _keep_winner(record: Record, winner: Trial, score: str, output: Path | None) -> None:
    assert winner.score is not None
    config = (record.folder.with_name(winner.run) / CONFIG).read_text(encoding="utf-8")
    write_text(record.folder / WINNER, config)
    if output is not None:
        write_text(output, config)
    record.log_metrics({score: winner.score}, step=0)
    record.set_tags({WINNER_TAG: winner.run})
    for name in (TRIALS, WINNER, SWEEP):
        record.log_artifact(record.folder / name)


def _check_output(output: Path) -> None:
    if output.exists():
        message = "it exists and may have been edited; name another file, or remove it"
        raise ConfigError(Fault(str(output), "output-exists", message))
    check_writable(output.parent)


def _silent(_told: object) -> None:
    """Each trial's needs and start are the sweep's own."""
