"""`clinseg predict`: masks on the patients' own grids, and a report of every case."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pipeline.checkpoint import Checkpoint
from pipeline.data.cases import Case
from pipeline.data.images import find_inputs
from pipeline.environment import environment
from pipeline.errors import ConfigError, Fault
from pipeline.files import check_writable, sha256_of, write_text
from pipeline.inference.budget import Plan
from pipeline.inference.classifier import ClassReport
from pipeline.inference.cohort import CaseReport, hash_inputs, predict_cohort, probabilities_path
from pipeline.inference.explain import Method
from pipeline.inference.predictor import Predictor, load_predictor, select_device
from pipeline.memory import freed_memory_kept, parse_size
from pipeline.progress import progress_bar
from pipeline.workflows.class_prediction import classify
from pipeline.workflows.models import load_model


def predict(
    model: str,
    inputs: Sequence[Path],
    folder: Path,
    device: str = "auto",
    max_memory: str | None = None,
    *,
    resume: bool = False,
    with_probabilities: bool = False,
    compiles: bool = False,
    method: Method | None = None,
    on_plan: Callable[[str, Plan], None] = lambda case, plan: None,
) -> list[CaseReport] | list[ClassReport]:
    """Predicts every input with a trained model and writes `folder/<case>.nii.gz` and `folder/report.json`.

    A classifier writes `folder/predictions.csv` instead of masks; see `classify`.

    The report is written anew after each case, so that an interrupted prediction can go on.

    Args:
        model: A run, `latest`, a checkpoint file or `models:/name@alias`; everything else comes from it.
        inputs: NIfTI files, folders of them, or DICOM series folders; for a classifier also PNG, JPEG and
            `.npz`.
        folder: Where masks go.
        device: `auto`, `cpu` or `cuda`.
        max_memory: A size such as `2GiB` that the prediction keeps within; None for what is free.
        resume: Whether to keep the masks that this model made of these very files before.
        with_probabilities: Whether to write `folder/probabilities/<case>.nii` as well.
        compiles: Whether to compile the networks first.
        method: How to show what a classifier's answers rest on; None to show nothing.
        on_plan: Is told each case's plan before its first window.

    Returns:
        One report per case; a refused case carries its faults.

    Raises:
        FaultError: If nothing can be predicted at all: no such model or input, or no place to write.
    """
    limit = parse_size(max_memory) if max_memory is not None else None
    checkpoint = load_model(model)
    if checkpoint.job.get("task") == "classification":
        asked = {
            "--max-memory": limit is not None,
            "--resume": resume,
            "--probabilities": with_probabilities,
            "--compile": compiles,
        }
        if wrong := [option for option, is_asked in asked.items() if is_asked]:
            message = "is for segmentation, and this model is a classifier; leave it out"
            raise ConfigError(Fault(option, "other-task", message) for option in wrong)
        return classify(checkpoint, inputs, folder, select_device(device), method)
    if method is not None:
        message = "explains a classifier's answers, and this model is none; leave it out"
        raise ConfigError(Fault("--explain", "other-task", message))
    predictor = load_predictor(checkpoint, select_device(device), limit, compiles=compiles)
    cases = find_inputs(inputs, predictor.num_channels)
    _refuse_overwriting(cases, folder)
    check_writable(folder)
    path = folder / "report.json"
    finished = _find_finished(path, checkpoint, cases) if resume else {}
    if with_probabilities:
        finished = {
            name: report for name, report in finished.items() if probabilities_path(folder, name).is_file()
        }
    reports = dict(finished)
    pending = [case for case in cases if case.id not in finished]
    memory = freed_memory_kept() if limit is None else nullcontext()
    with memory, progress_bar("Predicting cases", len(pending)) as advance:

        def keep(report: CaseReport) -> None:
            reports[report.case] = report
            write_report(path, checkpoint, predictor, list(reports.values()))
            advance()

        predict_cohort(predictor, pending, folder, keep, on_plan, with_probabilities=with_probabilities)
    write_report(path, checkpoint, predictor, [reports[case.id] for case in cases])
    return [reports[case.id] for case in cases]


def write_report(
    path: Path, checkpoint: Checkpoint, predictor: Predictor, reports: Sequence[CaseReport]
) -> None:
    """Writes what was predicted with what, as JSON."""
    config = json.dumps(checkpoint.job, sort_keys=True).encode()
    content = {
        "model_sha256": checkpoint.content_hash,
        "config_sha256": hashlib.sha256(config).hexdigest(),
        "run": checkpoint.provenance.get("run"),
        "device": str(predictor.device),
        "environment": environment(),
        "labels": dict(predictor.contract.labels),
        "structures": {name: list(values) for name, values in predictor.contract.structures.items()},
        "cases": [_describe(report) for report in reports],
    }
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _describe(report: CaseReport) -> dict[str, object]:
    content = asdict(report)
    content["faults"] = [str(fault) for fault in report.faults]
    content["status"] = "refused" if report.faults else "predicted"
    return content


def _find_finished(path: Path, checkpoint: Checkpoint, cases: Sequence[Case]) -> dict[str, CaseReport]:
    """Reports of the cases whose mask this model made of these files and that is still what was written."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["model_sha256"] != checkpoint.content_hash:
            return {}
        told = {entry["case"]: entry for entry in content["cases"] if entry["status"] == "predicted"}
        known = {case.id: _parse_report(told[case.id]) for case in cases if case.id in told}
    except (LookupError, TypeError, ValueError, OSError) as error:
        message = "this report cannot be read, so nothing can be resumed; leave --resume out to start anew"
        raise ConfigError(Fault(str(path), "report-unreadable", message)) from error
    return {
        case.id: known[case.id]
        for case in cases
        if case.id in known and _is_finished(known[case.id], case, path.parent)
    }


def _parse_report(entry: Mapping[str, Any]) -> CaseReport:
    content = {field.name: entry[field.name] for field in fields(CaseReport)}
    content |= {name: tuple(content[name]) for name in ("input_hashes", "warnings", "faults")}
    return CaseReport(**content)


def _is_finished(report: CaseReport, case: Case, folder: Path) -> bool:
    mask = folder / f"{case.id}.nii.gz"
    try:
        is_same = mask.is_file() and sha256_of(mask) == report.mask_hash
        return is_same and hash_inputs(case) == report.input_hashes
    except OSError:
        return False  # what cannot be read now is told when it is predicted


def _refuse_overwriting(cases: Sequence[Case], folder: Path) -> None:
    """A mask never takes the place of the image it was made from."""
    faults = [
        Fault(
            case.id, "would-overwrite", "the mask would replace its own image; choose another folder with -o"
        )
        for case in cases
        if {(folder / f"{case.id}.nii.gz").resolve(), probabilities_path(folder, case.id).resolve()}
        & {path.resolve() for path in case.images}
    ]
    if faults:
        raise ConfigError(faults)
