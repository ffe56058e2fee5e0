"""`clinseg predict` with a classifier: a table of answers, and a report of every case."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.checkpoint import Checkpoint
from pipeline.data.cases import Case, apply_rules
from pipeline.data.class_inputs import find_class_inputs
from pipeline.data.dicom import SeriesRule, series_files
from pipeline.errors import InputError
from pipeline.export.dicom_source import read_source
from pipeline.export.exporters import REPORT, export_path
from pipeline.export.nifti import write_map
from pipeline.export.prediction import Maker
from pipeline.files import check_writable, remove_files, write_text
from pipeline.inference.class_table import class_table_text
from pipeline.inference.classifier import ClassPredictor, ClassReport, load_class_predictor
from pipeline.inference.explain import DRAWN, STORED, Method, find_maps, map_name
from pipeline.inference.exporting import export_answer
from pipeline.progress import progress_bar
from pipeline.workflows.applying.case_reports import (
    describe_model,
    export_hashes,
)
from pipeline.workflows.applying.refusing import (
    refuse_overwriting,
    refuse_unused_rules,
    refuse_without_series,
)
from pipeline.workflows.auditing import AuditLog
from pipeline.workflows.tasks.classification_judging import write_class_report
from pipeline.workflows.tasks.explaining import draw_answer

TABLE, EXPLANATIONS = "predictions.csv", "explanations"


def classify(
    checkpoint: Checkpoint,
    inputs: Sequence[Path],
    folder: Path,
    device: torch.device,
    method: Method | None = None,
    rules: Sequence[SeriesRule] = (SeriesRule(),),
    maker: Maker | None = None,
) -> list[ClassReport]:
    """Classifies every input and writes `folder/predictions.csv` and `folder/report.json`.

    Args:
        checkpoint: A classifier; everything else comes from it.
        inputs: NIfTI, PNG or JPEG files, folders of them, DICOM series folders, or an `.npz`.
        folder: Where the table goes.
        device: Where to compute.
        method: How to show what each answer rests on, in `folder/explanations/` on the image's own grid,
            drawn and as NIfTI; None to show nothing.
        rules: Which DICOM series each channel is.
        maker: What `folder/dicom-sr/<case>.dcm` say that they were made by; None to write none.

    Returns:
        One report per case; a refused case carries its faults.

    Raises:
        FaultError: If nothing can be classified at all: no such input, or no place to write.
    """
    predictor = load_class_predictor(checkpoint, device)
    cases = apply_rules(find_class_inputs(inputs, predictor.num_channels), rules)
    refuse_unused_rules(cases, rules)
    if maker is not None:
        refuse_without_series(cases)
    told_in = {case.id: export_path(folder, REPORT, case.id) for case in cases}
    refuse_overwriting(cases, lambda case: [folder / TABLE, told_in[case.id]], "answer", folder)
    check_writable(folder)
    with progress_bar("Classifying cases", len(cases)) as advance:
        reports = predictor.classify(cases, _told(advance))
    # What an earlier prediction told, of these cases or others, would pass for a part of this one.
    remove_files([folder / TABLE, *told_in.values(), *find_maps(folder / EXPLANATIONS)])
    answers = class_table_text(reports, predictor.classes)
    table = {TABLE: hashlib.sha256(answers.encode()).hexdigest()}
    if maker is not None:
        reports = [
            _report(case, report, predictor.classes, folder, maker)
            for case, report in zip(cases, reports, strict=True)
        ]
    about = {
        **describe_model(checkpoint, predictor.device),
        "segmenter_sha256": checkpoint.segmenter.content_hash if checkpoint.segmenter else None,
    }
    log = AuditLog(folder, about)
    for report in reports:
        log.add(
            report.case,
            report.input_hashes,
            table | export_hashes(report.case, report.exports),
            report.faults,
            answer=dict(zip(predictor.classes, report.probabilities, strict=False)),
        )
    # Behind the log: a table that this does not know, after a kill, would pass for one that people wrote.
    write_text(folder / TABLE, answers)
    about["audit_head"] = log.head
    write_class_report(folder / "report.json", predictor, reports, about)
    if method is not None:
        answered = [(case, report) for case, report in zip(cases, reports, strict=True) if report.predicted]
        with progress_bar("Explaining answers", len(answered)) as advance:
            for case, report in answered:
                _explain(predictor, case, report, method, folder / EXPLANATIONS)
                advance()
    return reports


def _report(
    case: Case, report: ClassReport, classes: Sequence[str], folder: Path, maker: Maker
) -> ClassReport:
    """The answer as a DICOM report beside the table; a case without an answer stays as it is."""
    if report.faults:
        return report
    try:
        source = read_source(case.id, series_files(*case.sources[0]), None)
    except InputError as error:
        return replace(report, faults=error.faults)
    return export_answer(report, classes, source, folder, maker)


def _explain(
    predictor: ClassPredictor, case: Case, report: ClassReport, method: Method, folder: Path
) -> None:
    """What the first answer rests on."""
    name = report.predicted[0]
    path = folder / map_name(case.id, name, method)
    found = draw_answer(path.with_name(f"{path.name}{DRAWN}"), predictor, case, report, name, method)
    meaning = {"method": method, "class": name}
    write_map(path.with_name(f"{path.name}{STORED}"), np.asfortranarray(found.array), found.grid, meaning)


def _told(advance: Callable[[], None]) -> Callable[[ClassReport], None]:
    return lambda report: advance()
