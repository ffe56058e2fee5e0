"""`clinseg train`: the fold that a job names, or all of them, one after the other, and their ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint import Checkpoint, Member, read_checkpoint, write_checkpoint
from pipeline.config import SegmentationJob, job_parameters, job_to_mapping
from pipeline.data.cases import Study, read_manifest
from pipeline.data.folds import list_folds
from pipeline.environment import code_version, environment
from pipeline.errors import ConfigError
from pipeline.inference.components import Components, OutOfFold, decide_components
from pipeline.inference.evaluation import CaseMetrics, read_table, summarise_structures, write_metrics
from pipeline.progress import progress_bar
from pipeline.signals import StopSignals
from pipeline.tracking import Delivery, Record, RunFolder, deliver, find_child, read_status, resume_record
from pipeline.training.distributed import ALONE, join_world
from pipeline.workflows.judging import MASKS, TABLE
from pipeline.workflows.material import check_structures
from pipeline.workflows.models import BEST
from pipeline.workflows.needs import Needs
from pipeline.workflows.resuming import CONFIG, find_job
from pipeline.workflows.starting import Start
from pipeline.workflows.training import TrainingResult, begin, ended_by_trouble, part_name, train


def train_folds(
    config: Path | None,
    overrides: Sequence[str] = (),
    resume: str | None = None,
    on_needs: Callable[[Needs], None] = lambda needs: None,
    on_start: Callable[[Start], None] = lambda start: None,
) -> TrainingResult | None:
    """Trains one network, or with `data.fold: all` one for every fold.

    Args:
        config: The job; may be left out when a run is resumed.
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
        world.check_alone("data.fold", "train one fold after the other (--fold 0, …), or leave torchrun out")
        study = read_manifest(job.data)
        check_structures(job, study.contract)
        folds = [_on_fold(job, fold) for fold in list_folds(study.cases, job.data, job.training.seed)]
        record = resume_record(run) if run is not None else begin(job)
        with ended_by_trouble(record, signals):
            _describe(record, job)
            parts = [_train_fold(record, fold, signals, on_needs, on_start) for fold in folds]
            rows, components = _join(record, job, parts, study)
        deliveries = [record.close("FINISHED")]
        if deliveries[0].is_complete:
            deliveries += _deliver(parts)
        judged = {row.structure for row in rows}
        unjudged = tuple(name for name in study.contract.structures if name not in judged)
        return TrainingResult(record.name, record.folder, "finished", rows, deliveries, components, unjudged)


@dataclass(frozen=True, slots=True)
class _Part:
    """A fold that was trained.

    Attributes:
        job: It with its fold.
        run: Its run.
        rows: Metrics of its validation cases, as its table has them.
    """

    job: SegmentationJob
    run: RunFolder
    rows: list[CaseMetrics]


def _deliver(parts: Sequence[_Part]) -> list[Delivery]:
    """Takes the rest to MLflow of folds that ended before it had the run they are parts of."""
    deliveries = []
    for part in parts:
        with suppress(ConfigError):  # another process is doing it
            deliveries.append(deliver(part.run))
    return deliveries


def _on_fold(job: SegmentationJob, fold: int) -> SegmentationJob:
    return job.model_copy(update={"data": job.data.model_copy(update={"fold": fold})})


def _describe(record: Record, job: SegmentationJob) -> None:
    record.log_parameters(job_parameters(job))
    record.set_tags({"clinseg.fold": "all"})
    record.log_artifact(record.folder / CONFIG)


def _train_fold(
    record: Record,
    job: SegmentationJob,
    signals: StopSignals,
    on_needs: Callable[[Needs], None],
    on_start: Callable[[Start], None],
) -> _Part:
    """Trains a fold, or goes on with it; one that is finished stays as it is."""
    assert isinstance(job.data.fold, int), "one fold is trained"
    run = find_child(record.run, part_name(job.data.fold))
    if run is None or read_status(run) != "FINISHED":
        is_begun = run is not None and (run.path / CONFIG).is_file()
        train(job, run if is_begun else None, signals, ALONE, on_needs, on_start, record.run)
        run = find_child(record.run, part_name(job.data.fold))
    assert run is not None, "it was trained"
    rows = read_table(run.path / TABLE)
    record.log_metrics(_means(rows, "folds"), step=job.data.fold)
    return _Part(job, run, rows)


def _join(
    record: Record, job: SegmentationJob, parts: Sequence[_Part], study: Study
) -> tuple[list[CaseMetrics], Components]:
    """One table of all folds, what to do with components, and one model."""
    rows = sorted((row for part in parts for row in part.rows), key=lambda row: row.case)
    write_metrics(record.folder / TABLE, rows)
    record.log_artifact(record.folder / TABLE)
    components = _decide_components(job, parts, study)
    _record_summary(record, rows, components, num_folds=len(parts))
    _write_ensemble(record, job, parts, components, _means(rows, "best"))
    return rows, components


def _decide_components(job: SegmentationJob, parts: Sequence[_Part], study: Study) -> Components:
    """Decides about the structures that the job says nothing of."""
    kept = job.inference.largest_component
    structures = study.contract.structures
    references = {case.id: case.label for case in study.cases}
    cases = []
    for part in parts:
        compared: dict[str, dict[str, tuple[int, ...]]] = {}
        for row in part.rows:
            compared.setdefault(row.case, {})[row.structure] = structures[row.structure]
        for case, own in compared.items():
            reference = references[case]
            assert reference is not None, "validation cases have labels"
            mask = part.run.path / MASKS / f"{case}.nii.gz"
            cases.append(OutOfFold(mask, reference, own, study.contract.ignore_value))
    candidates = {name: values for name, values in structures.items() if name not in kept}
    with progress_bar("Deciding on components", len(cases)) as advance:
        return decide_components(cases, candidates, advance)


def _means(rows: Sequence[CaseMetrics], group: str) -> dict[str, float]:
    return {
        f"{group}/{metric}/{structure}": summary.mean
        for structure, metrics in summarise_structures(rows).items()
        for metric, summary in metrics.items()
    }


def _record_summary(
    record: Record, rows: Sequence[CaseMetrics], components: Components, num_folds: int
) -> None:
    values: dict[str, float] = {}
    for structure, metrics in summarise_structures(rows).items():
        for metric, summary in metrics.items():
            name = f"{metric}/{structure}"
            values |= {f"best/{name}": summary.mean, f"best_low/{name}": summary.low}
            values[f"best_high/{name}"] = summary.high
    for name, before in components.before.items():
        values |= {f"components_before/dice/{name}": before}
        values |= {f"components_after/dice/{name}": components.after[name]}
    record.log_metrics(values, step=num_folds)
    record.set_tags({"clinseg.components_kept": ", ".join(components.kept) or "none"})


def _write_ensemble(
    record: Record,
    job: SegmentationJob,
    parts: Sequence[_Part],
    components: Components,
    metrics: dict[str, float],
) -> None:
    checkpoints = [read_checkpoint(part.run.path / BEST) for part in parts]
    first = checkpoints[0]
    kept = (*job.inference.largest_component, *components.kept)
    inference = job.inference.model_copy(update={"largest_component": kept})
    provenance: dict[str, Any] = {
        "run": record.name,
        "epoch": None,
        "metrics": metrics,
        "components": asdict(components),
        "data_hash": first.provenance["data_hash"],
        "training_cases": sorted({case for one in checkpoints for case in one.provenance["training_cases"]}),
        "validation_cases": [],
        "environment": environment() | {"code": code_version() or "unknown"},
    }
    ensemble = Checkpoint(
        weights={},
        job=job_to_mapping(job.model_copy(update={"inference": inference})),
        labels=first.labels,
        structures=first.structures,
        channels=first.channels,
        intensity=None,
        provenance=provenance,
        members=tuple(Member(one.weights, one.intensity, one.provenance) for one in checkpoints),
    )
    write_checkpoint(record.folder / BEST, ensemble)
    record.log_artifact(record.folder / BEST, "model")
