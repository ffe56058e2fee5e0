"""The kept checkpoint on the validation cases: predicted like any patient's image, then compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.checkpoint import read_checkpoint
from pipeline.config import SegmentationJob
from pipeline.data.checks import read_checked_case
from pipeline.data.images import read_label_map
from pipeline.data.prepared_cases import PreparedCase
from pipeline.errors import InputError
from pipeline.inference.cohort import predict_cohort
from pipeline.inference.confusion import Confusion, find_confusions, write_confusions
from pipeline.inference.evaluation import evaluate_case
from pipeline.inference.metric_table import CaseMetrics, write_metrics
from pipeline.inference.predictor import load_predictor
from pipeline.labels import LabelContract
from pipeline.progress import progress_bar
from pipeline.report.case_tables import name_rank
from pipeline.report.figures import draw_curves, draw_overlay
from pipeline.tracking import Record, read_metrics
from pipeline.workflows.prediction import write_report
from pipeline.workflows.runs.models import BEST
from pipeline.workflows.runs.recording import kept_epoch, record_best_masks
from pipeline.workflows.tasks.segmentation_material import SegmentationMaterial
from pipeline.workflows.tasks.subgroups import write_subgroups

MASKS = Path("validation")
TABLE = Path("cases.csv")
CONFUSION = Path("confusion.csv")
"""Predictions of the validation cases, their metrics, and what was taken for what, in a run's folder."""


def judge(
    record: Record, job: SegmentationJob, material: SegmentationMaterial, device: torch.device
) -> list[CaseMetrics]:
    """Predicts, compares, draws and records the validation cases with the kept checkpoint.

    This is the path of `clinseg predict` and `clinseg evaluate`, so its numbers are theirs.

    Returns:
        One row per case and structure that is labelled in it; none if no case validates.
    """
    folder = record.folder
    record.log_artifact(folder / BEST, "model")
    draw_curves(folder / "curves.png", read_metrics(record.run), record.name)
    record.log_artifact(folder / "curves.png")
    cases = material.split.validation
    if not cases:
        return []
    checkpoint = read_checkpoint(folder / BEST)
    predictor = load_predictor(checkpoint, device)
    with progress_bar("Predicting validation cases", len(cases)) as advance:
        reports = predict_cohort(predictor, cases, folder / MASKS, on_case=lambda report: advance())
    write_report(folder / MASKS / "report.json", checkpoint, predictor, reports)
    faults = [fault for report in reports for fault in report.faults]
    if faults:
        raise InputError(faults)
    rows, confusions = _compare(material, folder / MASKS)
    record_tables(record, rows, confusions)
    write_subgroups(record, job.data, cases)
    record_best_masks(record, rows, kept_epoch(record, checkpoint))
    _draw_overlays(record, job.tracking.overlays, material, rows)
    return rows


def record_tables(record: Record, rows: Sequence[CaseMetrics], confusions: Sequence[Confusion]) -> None:
    """Writes and records what was measured of each case."""
    write_metrics(record.folder / TABLE, rows)
    write_confusions(record.folder / CONFUSION, confusions)
    for name in (TABLE, CONFUSION):
        record.log_artifact(record.folder / name)


def _compare(material: SegmentationMaterial, folder: Path) -> tuple[list[CaseMetrics], list[Confusion]]:
    rows, confusions = [], []
    contract = material.contract
    with progress_bar("Comparing validation cases", len(material.validation)) as advance:
        for prepared in material.validation:
            case = prepared.case
            assert case.label is not None, "validation cases have labels"
            prediction, reference = read_label_map(folder / f"{case.id}.nii.gz"), read_label_map(case.label)
            structures = _labelled_structures(prepared, contract)
            rows += evaluate_case(case.id, prediction, reference, structures, contract.ignore_value)
            confusions += find_confusions(case.id, prediction, reference, structures, contract.ignore_value)
            advance()
    return rows, confusions


def _labelled_structures(prepared: PreparedCase, contract: LabelContract) -> dict[str, tuple[int, ...]]:
    return {
        name: values
        for name, values in contract.structures.items()
        if prepared.labelled is None or name in prepared.labelled
    }


def _draw_overlays(
    record: Record, num: int, material: SegmentationMaterial, rows: Sequence[CaseMetrics]
) -> None:
    """Draws cases from worst to best at even steps: with three, the worst, the median and the best."""
    ranked = _rank(material.validation, rows)
    picked = sorted({round(p) for p in np.linspace(0, len(ranked) - 1, num)}) if num and ranked else []
    contract, num_channels = material.contract, len(material.study.channels)
    with progress_bar("Drawing overlays", len(picked)) as advance:
        for position in picked:
            case = ranked[position].case
            assert case.label is not None, "validation cases have labels"
            labelled = _labelled_structures(ranked[position], contract)
            unlabelled = contract.structures.keys() - labelled.keys()
            path = record.folder / "overlays" / f"{position + 1:03d}-of-{len(ranked):03d}-{case.id}.png"
            draw_overlay(
                path,
                image=read_checked_case(case, contract, num_channels).images[0],
                prediction=read_label_map(record.folder / MASKS / f"{case.id}.nii.gz"),
                reference=read_label_map(case.label),
                labels=contract.labels,
                title=f"{case.id}, {name_rank(position, len(ranked))} of {len(ranked)} by Dice",
                unlabelled={value for name in unlabelled for value in contract.structures[name]},
                ignore_value=contract.ignore_value,
                colours=contract.colours,
            )
            record.log_artifact(path, "overlays")
            advance()


def _rank(cases: Sequence[PreparedCase], rows: Sequence[CaseMetrics]) -> list[PreparedCase]:
    """The cases in which anything is labelled, the worst first."""
    dice: dict[str, list[float]] = {}
    for row in rows:
        dice.setdefault(row.case, []).append(row.values["dice"])
    judged = [prepared for prepared in cases if prepared.case.id in dice]
    return sorted(judged, key=lambda prepared: float(np.mean(dice[prepared.case.id])))
