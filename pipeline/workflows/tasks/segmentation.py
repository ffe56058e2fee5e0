"""Segmentation's part in a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch

from pipeline.checkpoint import read_checkpoint
from pipeline.config import SegmentationJob
from pipeline.data.case_images import slice_faults
from pipeline.data.cases import Case, Study, read_manifest
from pipeline.data.checks import CheckReport, check_study
from pipeline.data.fingerprint import no_foreground
from pipeline.data.folds import Split
from pipeline.data.patches import PatchSampler
from pipeline.inference.components import Components, OutOfFold, decide_components
from pipeline.inference.confusion import read_confusions
from pipeline.inference.metric_table import CaseMetrics, read_table, summarise_structures
from pipeline.progress import progress_bar
from pipeline.tracking import Record, RunFolder
from pipeline.training.distributed import World
from pipeline.training.segmentation import SegmentationTask
from pipeline.workflows.runs.joining import write_ensemble
from pipeline.workflows.runs.models import BEST
from pipeline.workflows.runs.recording import record_best_masks
from pipeline.workflows.runs.starting import Start
from pipeline.workflows.tasks.columns import Column, Judgement, Part
from pipeline.workflows.tasks.segmentation_judging import CONFUSION, MASKS, TABLE, judge, record_tables
from pipeline.workflows.tasks.segmentation_material import (
    SegmentationMaterial,
    check_structures,
    labelled_faults,
    load_material,
)


class SegmentationColumn(Column[SegmentationJob, SegmentationMaterial, SegmentationTask]):
    """See `Column`."""

    command = "predict"
    metric = SegmentationTask.metric
    score = "best/dice/mean"

    def read_cases(self, job: SegmentationJob) -> Sequence[Case]:
        """See `Column`."""
        return _read_study(job).cases

    def check(
        self, job: SegmentationJob, splits: Sequence[Split], on_case: Callable[[], None]
    ) -> CheckReport:
        """See `Column`."""
        study = _read_study(job)
        report = check_study(study, on_case)
        if report.errors:
            return report
        orientation = job.preprocessing.orientation
        shapes = {case: found.grid.shape_along(orientation) for case, found in report.sound.items()}
        faults = [*slice_faults(job.network.dimensions, orientation, shapes)]
        for split in splits:
            training = [report.sound[case.id] for case in split.training]
            faults += labelled_faults(study.contract, [found.labelled for found in training])
            needs_foreground = job.preprocessing.normalisation == "dataset"
            if needs_foreground and not any(found.has_foreground for found in training):
                faults.append(no_foreground())
        return replace(report, errors=tuple(dict.fromkeys(faults)))

    def load_material(self, job: SegmentationJob, run: RunFolder | None = None) -> SegmentationMaterial:
        """See `Column`."""
        return load_material(job)

    def build_task(
        self,
        job: SegmentationJob,
        material: SegmentationMaterial,
        device: torch.device,
        start: Start | None,
        world: World,
    ) -> SegmentationTask:
        """See `Column`."""
        source = start.source if start is not None else None
        num_channels = len(material.channels)
        return SegmentationTask(
            job, material.contract, num_channels, material.validation, device, source, world
        )

    def build_sampler(
        self, job: SegmentationJob, material: SegmentationMaterial, task: SegmentationTask
    ) -> PatchSampler:
        """See `Column`."""
        section = job.training
        return PatchSampler(
            material.training,
            section.patch_size,
            task.augmentation.source_size,
            section.batch_size,
            section.foreground_fraction,
            section.seed,
            job.augmentation.enhancer_probability,
            share=(task.world.rank, task.world.size),
        )

    def illustrate(
        self,
        record: Record,
        job: SegmentationJob,
        material: SegmentationMaterial,
        task: SegmentationTask,
        epoch: int,
    ) -> None:
        """Nothing: its metrics tell."""

    def judge(
        self, record: Record, job: SegmentationJob, material: SegmentationMaterial, device: torch.device
    ) -> Judgement:
        """See `Column`."""
        return Judgement(judge(record, job, material, device), unjudged=material.unjudged)

    def summarise_fold(self, part: Part) -> dict[str, float]:
        """See `Column`."""
        return _means(read_table(part.run.path / TABLE), "folds")

    def join(self, record: Record, job: SegmentationJob, parts: Sequence[Part]) -> Judgement:
        """One table of all folds, what to do with components, and one model."""
        study = _read_study(job)
        own = [read_table(part.run.path / TABLE) for part in parts]
        rows = sorted((row for some in own for row in some), key=lambda row: row.case)
        tables = [path for part in parts if (path := part.run.path / CONFUSION).is_file()]
        confused = [one for path in tables for one in read_confusions(path)]
        record_tables(record, rows, sorted(confused, key=lambda one: one.case))
        components = _decide_components(job, parts, study)
        _record_summary(record, rows, components, num_folds=len(parts))
        write_ensemble(
            record,
            _keeping(job, components),
            [read_checkpoint(part.run.path / BEST) for part in parts],
            metrics=_means(rows, "best"),
            provenance={"components": asdict(components)},
        )
        judged = {row.structure for row in rows}
        unjudged = tuple(name for name in study.contract.structures if name not in judged)
        return Judgement(rows, components=components, unjudged=unjudged)


def _read_study(job: SegmentationJob) -> Study:
    study = read_manifest(job.data)
    check_structures(job, study.contract)
    return study


def _decide_components(job: SegmentationJob, parts: Sequence[Part], study: Study) -> Components:
    """Decides about the structures that the job says nothing of."""
    kept = job.inference.largest_component
    structures = study.contract.structures
    references = {case.id: case.label for case in study.cases}
    cases = []
    for part in parts:
        compared: dict[str, dict[str, tuple[int, ...]]] = {}
        for row in read_table(part.run.path / TABLE):
            compared.setdefault(row.case, {})[row.structure] = structures[row.structure]
        for case, own in compared.items():
            reference = references[case]
            assert reference is not None, "validation cases have labels"
            mask = part.run.path / MASKS / f"{case}.nii.gz"
            cases.append(OutOfFold(mask, reference, own, study.contract.ignore_value))
    candidates = {name: values for name, values in structures.items() if name not in kept}
    with progress_bar("Deciding on components", len(cases)) as advance:
        return decide_components(cases, candidates, advance)


def _keeping(job: SegmentationJob, components: Components) -> SegmentationJob:
    """The job with what was decided about components."""
    kept = (*job.inference.largest_component, *components.kept)
    inference = job.inference.model_copy(update={"largest_component": kept})
    return job.model_copy(update={"inference": inference})


def _means(rows: Sequence[CaseMetrics], group: str) -> dict[str, float]:
    return {
        f"{group}/{metric}/{structure}": summary.mean
        for structure, metrics in summarise_structures(rows).items()
        for metric, summary in metrics.items()
    }


def _record_summary(
    record: Record, rows: Sequence[CaseMetrics], components: Components, num_folds: int
) -> None:
    record_best_masks(record, rows, num_folds)
    values: dict[str, float] = {}
    for name, before in components.before.items():
        values |= {f"components_before/dice/{name}": before}
        values |= {f"components_after/dice/{name}": components.after[name]}
    record.log_metrics(values, step=num_folds)
    record.set_tags({"clinseg.components_kept": ", ".join(components.kept) or "none"})
