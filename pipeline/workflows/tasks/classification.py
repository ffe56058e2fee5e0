"""Classification's part in a training."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import torch

from pipeline.checkpoint import read_checkpoint
from pipeline.config import ClassificationJob
from pipeline.data.cases import Case
from pipeline.data.checks import CheckReport
from pipeline.data.class_checks import check_class_study
from pipeline.data.class_images import ClassSampler
from pipeline.data.class_study import check_split, read_class_study
from pipeline.data.folds import Split
from pipeline.inference.classifier import ClassReport, load_class_predictor
from pipeline.inference.predictor import select_device
from pipeline.inference.regions import build_regions
from pipeline.tracking import Record, RunFolder
from pipeline.training.classification import ClassificationTask
from pipeline.training.distributed import World
from pipeline.workflows.runs.joining import write_ensemble
from pipeline.workflows.runs.models import BEST
from pipeline.workflows.runs.starting import Start
from pipeline.workflows.tasks.classification_judging import LOGITS, calibrate, judge_classifier, tell_classes
from pipeline.workflows.tasks.classification_material import ClassMaterial, load_class_material
from pipeline.workflows.tasks.columns import Column, Judgement, Part
from pipeline.workflows.tasks.regions import find_segmenter


class ClassificationColumn(Column[ClassificationJob, ClassMaterial, ClassificationTask]):
    """See `Column`."""

    command = "predict"
    metric = ClassificationTask.metric
    score = "best/auc"

    def read_cases(self, job: ClassificationJob) -> Sequence[Case]:
        """See `Column`."""
        return read_class_study(job.data).cases

    def check(
        self, job: ClassificationJob, splits: Sequence[Split], on_case: Callable[[], None]
    ) -> CheckReport:
        """See `Column`."""
        study = read_class_study(job.data)
        for split in splits:
            check_split(study, split)
        regions = build_regions(
            job.data, find_segmenter(job), len(study.channels), select_device(job.training.device)
        )
        return check_class_study(study, splits, on_case, regions)

    def load_material(self, job: ClassificationJob, run: RunFolder | None = None) -> ClassMaterial:
        """See `Column`."""
        return load_class_material(job, run)

    def build_task(
        self,
        job: ClassificationJob,
        material: ClassMaterial,
        device: torch.device,
        start: Start | None,
        world: World,
    ) -> ClassificationTask:
        """See `Column`."""
        source = start.source if start is not None else None
        num_channels = len(material.channels)
        return ClassificationTask(
            job,
            material.study,
            num_channels,
            material.training,
            material.validation,
            device,
            source,
            world,
        )

    def build_sampler(
        self, job: ClassificationJob, material: ClassMaterial, task: ClassificationTask
    ) -> ClassSampler:
        """See `Column`."""
        return ClassSampler(
            material.training,
            task.augmentation.source_size,
            job.training.batch_size,
            is_balanced=job.training.balanced_sampling,
            seed=job.training.seed,
            share=(task.world.rank, task.world.size),
        )

    def illustrate(
        self,
        record: Record,
        job: ClassificationJob,
        material: ClassMaterial,
        task: ClassificationTask,
        epoch: int,
    ) -> None:
        """Nothing: its metrics tell."""

    def judge(
        self, record: Record, job: ClassificationJob, material: ClassMaterial, device: torch.device
    ) -> Judgement:
        """See `Column`."""
        return Judgement(figures=judge_classifier(record, job, material, device))

    def summarise_fold(self, part: Part) -> dict[str, float]:
        """See `Column`."""
        provenance = read_checkpoint(part.run.path / BEST).provenance
        return {name.replace("validation/", "folds/"): value for name, value in provenance["metrics"].items()}

    def join(self, record: Record, job: ClassificationJob, parts: Sequence[Part]) -> Judgement:
        """One model of all folds, calibrated on what each said of the cases that it had not seen."""
        checkpoints = [read_checkpoint(part.run.path / BEST) for part in parts]
        first = checkpoints[0]
        classes = tuple(first.structures)
        logits: dict[str, list[float]] = {}
        for part in parts:
            logits |= json.loads((part.run.path / LOGITS).read_text(encoding="utf-8"))
        cases = [case for case in read_class_study(job.data).cases if case.id in logits]
        said = [ClassReport(case.id, logits=tuple(logits[case.id])) for case in cases]
        calibration = calibrate(said, cases, job, classes)
        ensemble = write_ensemble(record, job, checkpoints, calibration=calibration.to_mapping())
        predictor = load_class_predictor(ensemble, torch.device("cpu"))
        reports = predictor.answer_again(said)
        figures = tell_classes(record, classes, calibration, reports, cases, step=len(parts))
        return Judgement(figures=figures)
