"""A kept classifier on the validation cases: calibrated on them, then asked like any patient's image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from pipeline.calibration import Calibration, class_probabilities, fit_calibration
from pipeline.checkpoint import read_checkpoint, write_checkpoint
from pipeline.config import ClassificationJob
from pipeline.data.cases import Case
from pipeline.discrimination import judge_classes
from pipeline.errors import InputError
from pipeline.files import write_json, write_text
from pipeline.inference.class_table import class_targets, write_class_table
from pipeline.inference.classifier import ClassPredictor, ClassReport, load_class_predictor
from pipeline.progress import progress_bar
from pipeline.report.calibration import draw_calibration
from pipeline.report.discrimination import draw_discrimination
from pipeline.report.figures import draw_curves
from pipeline.statistics import Estimate
from pipeline.tracking import Record, read_metrics
from pipeline.workflows.runs.models import BEST
from pipeline.workflows.runs.recording import kept_epoch, record_best
from pipeline.workflows.tasks.classification_material import ClassMaterial
from pipeline.workflows.tasks.explaining import draw_answer
from pipeline.workflows.tasks.subgroups import write_subgroups

TABLE = Path("cases.csv")
LOGITS = Path("validation/logits.json")
"""Answers on the validation cases, and the logits behind them, in a run's folder."""


def judge_classifier(
    record: Record, job: ClassificationJob, material: ClassMaterial, device: torch.device
) -> dict[str, Estimate]:
    """Calibrates the kept checkpoint on the validation cases and records how well it does on them.

    The checkpoint was chosen on these cases and temperature, thresholds and review are fitted on them: on
    others expect somewhat less.

    Returns:
        Figures over all validation cases; none if no case validates.
    """
    path = record.folder / BEST
    draw_curves(record.folder / "curves.png", read_metrics(record.run), record.name)
    record.log_artifact(record.folder / "curves.png")
    cases = material.split.validation
    if not cases:
        record.log_artifact(path, "model")
        return {}
    checkpoint = read_checkpoint(path)
    predictor = load_class_predictor(checkpoint, device)
    with progress_bar("Classifying validation cases", len(cases)) as advance:
        reports = predictor.classify(cases, lambda report: advance())
    faults = [fault for report in reports for fault in report.faults]
    if faults:
        raise InputError(faults)
    calibration = calibrate(reports, cases, job, predictor.classes)
    write_checkpoint(path, replace(checkpoint, calibration=calibration.to_mapping()))
    record.log_artifact(path, "model")
    predictor.calibration = calibration
    reports = predictor.answer_again(reports)
    write_text(record.folder / LOGITS, json.dumps({report.case: report.logits for report in reports}) + "\n")
    epoch = kept_epoch(record, checkpoint)
    figures = tell_classes(record, predictor.classes, calibration, reports, cases, epoch)
    write_subgroups(record, job.data, cases)
    _draw_cases(record, job.tracking.overlays, predictor, cases, reports)
    return figures


def calibrate(
    reports: Sequence[ClassReport], cases: Sequence[Case], job: ClassificationJob, classes: Sequence[str]
) -> Calibration:
    """What logits of the cases mean, their classes being known."""
    targets = class_targets(
        [case.classes or () for case in cases], classes, is_multi_label=job.data.multi_label
    )
    section = job.inference
    logits = np.array([report.logits for report in reports])
    return fit_calibration(logits, targets, job.data.multi_label, section.operating_point, section.coverage)


def tell_classes(
    record: Record,
    classes: Sequence[str],
    calibration: Calibration,
    reports: Sequence[ClassReport],
    cases: Sequence[Case],
    step: int,
) -> dict[str, Estimate]:
    """Writes, draws and records calibrated answers beside what is true."""
    truth = {case.id: case.classes or () for case in cases}
    write_class_table(record.folder / TABLE, reports, classes, truth)
    record.log_artifact(record.folder / TABLE)
    multi_label = calibration.multi_label
    targets = class_targets([truth[report.case] for report in reports], classes, is_multi_label=multi_label)
    answers = class_targets([report.predicted for report in reports], classes, is_multi_label=multi_label)
    probabilities = np.array([report.probabilities for report in reports])
    figures = judge_classes(probabilities, answers, targets, classes, multi_label)
    record_best(record, figures, step)
    record.log_metrics(_calibration_metrics(calibration), step=step)
    draw_discrimination(
        record.folder / "discrimination.png",
        probabilities=probabilities,
        predictions=answers,
        targets=targets,
        classes=classes,
        multi_label=multi_label,
        figures=figures,
        title=record.name,
    )
    logits = np.array([report.logits for report in reports])
    draw_calibration(
        record.folder / "calibration.png",
        probabilities=probabilities,
        uncalibrated=class_probabilities(logits, multi_label),
        targets=targets,
        classes=classes,
        calibration=calibration,
        title=record.name,
    )
    for name in "discrimination.png", "calibration.png":
        record.log_artifact(record.folder / name)
    return figures


def write_class_report(
    path: Path,
    predictor: ClassPredictor,
    reports: Sequence[ClassReport],
    model: Mapping[str, object],
) -> None:
    """Writes what was classified with what, as JSON."""
    content = {
        **model,
        "classes": list(predictor.classes),
        "calibration": predictor.calibration.to_mapping(),
        "cases": [
            {
                **asdict(report),
                "faults": [str(fault) for fault in report.faults],
                "status": "refused" if report.faults else "predicted",
            }
            for report in reports
        ],
    }
    write_json(path, content)


def _draw_cases(
    record: Record,
    num: int,
    predictor: ClassPredictor,
    cases: Sequence[Case],
    reports: Sequence[ClassReport],
) -> None:
    """Explains answers from worst to best at even steps: with three, the worst, the median, the best."""
    worth = [_agreement(predictor, case, report) for case, report in zip(cases, reports, strict=True)]
    ranked = np.argsort(worth, kind="stable")
    picked = sorted({round(p) for p in np.linspace(0, len(ranked) - 1, num)}) if num else []
    with progress_bar("Drawing validation cases", len(picked)) as advance:
        for position in picked:
            case, report = cases[ranked[position]], reports[ranked[position]]
            if report.predicted:
                path = record.folder / "overlays" / f"{position + 1:03d}-of-{len(ranked):03d}-{case.id}.png"
                draw_answer(path, predictor, case, report, report.predicted[0], "grad_cam")
                record.log_artifact(path, "overlays")
            advance()


def _agreement(predictor: ClassPredictor, case: Case, report: ClassReport) -> float:
    """The probability given to what is true; of several labels the least."""
    known = case.classes or ()
    shares = zip(predictor.classes, report.probabilities, strict=True)
    if predictor.calibration.multi_label:
        return min(share if name in known else 1 - share for name, share in shares)
    return next(share for name, share in shares if name in known)


def _calibration_metrics(calibration: Calibration) -> dict[str, float]:
    values = {
        "calibration/temperature": calibration.temperature,
        "calibration/review_below": calibration.review_below,
    }
    for name, ece in (("before", calibration.ece_before), ("after", calibration.ece_after)):
        if ece is not None:
            values[f"calibration/ece_{name}"] = ece
    return values
