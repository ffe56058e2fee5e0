"""`clinseg predict`: masks on the patients' own grids, and a report of every case."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.checkpoint import Checkpoint
from pipeline.data.cases import Case
from pipeline.data.images import find_inputs
from pipeline.environment import environment
from pipeline.errors import ConfigError, Fault
from pipeline.files import check_writable, write_text
from pipeline.inference.cohort import CaseReport, predict_cohort
from pipeline.inference.predictor import Predictor, load_predictor, select_device
from pipeline.progress import progress_bar
from pipeline.workflows.models import load_model


def predict(model: str, inputs: Sequence[Path], folder: Path, device: str = "auto") -> list[CaseReport]:
    """Predicts every input with a trained model and writes `folder/<case>.nii.gz` and `folder/report.json`.

    Args:
        model: A run, `latest`, a checkpoint file or `models:/name@alias`; everything else comes from it.
        inputs: NIfTI files, folders of them, or DICOM series folders.
        folder: Where masks go.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        One report per case; a refused case carries its faults.

    Raises:
        FaultError: If nothing can be predicted at all: no such model or input, or no place to write.
    """
    checkpoint = load_model(model)
    predictor = load_predictor(checkpoint, select_device(device))
    cases = find_inputs(inputs, predictor.num_channels)
    _refuse_overwriting(cases, folder)
    check_writable(folder)
    with progress_bar("Predicting cases", len(cases)) as advance:
        reports = predict_cohort(predictor, cases, folder, advance)
    write_report(folder / "report.json", checkpoint, predictor, reports)
    return reports


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


def _refuse_overwriting(cases: Sequence[Case], folder: Path) -> None:
    """A mask never takes the place of the image it was made from."""
    faults = [
        Fault(
            case.id, "would-overwrite", "the mask would replace its own image; choose another folder with -o"
        )
        for case in cases
        if (folder / f"{case.id}.nii.gz").resolve() in {path.resolve() for path in case.images}
    ]
    if faults:
        raise ConfigError(faults)
