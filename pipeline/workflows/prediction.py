"""`clinseg predict`: masks on the patients' own grids, and a report of every case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.checkpoint import Checkpoint
from pipeline.data.dicom import SeriesRule
from pipeline.data.images import find_inputs
from pipeline.errors import ConfigError, Fault
from pipeline.export.exporters import EXPORTERS, NEED_PROBABILITIES, REPORT
from pipeline.export.label_table import write_label_table
from pipeline.files import check_writable, remove_files, write_json
from pipeline.inference.budget import Plan
from pipeline.inference.classifier import ClassReport
from pipeline.inference.cohort import CaseReport, predict_cohort
from pipeline.inference.explain import Method
from pipeline.inference.exporting import Exports, further_paths, probabilities_path
from pipeline.inference.predictor import Predictor, load_predictor
from pipeline.memory import freed_memory_kept
from pipeline.progress import progress_bar
from pipeline.workflows.applying.case_reports import (
    describe_maker,
    describe_model,
    find_finished,
    find_means,
    mask_hashes,
    parse_report,
)
from pipeline.workflows.applying.refusing import (
    refuse_overwriting,
    refuse_unused_rules,
    refuse_without_series,
)
from pipeline.workflows.auditing import AuditLog
from pipeline.workflows.tasks.classification_prediction import classify


def predict(
    model: str,
    inputs: Sequence[Path],
    folder: Path,
    device: str = "auto",
    max_memory: str | None = None,
    *,
    rules: Sequence[SeriesRule] = (SeriesRule(),),
    resume: bool = False,
    with_probabilities: bool = False,
    compiles: bool = False,
    also: Sequence[str] = (),
    method: Method | None = None,
    on_plan: Callable[[str, Plan], None] = lambda case, plan: None,
) -> list[CaseReport] | list[ClassReport]:
    """Predicts every input with a trained model and writes `folder/<case>.nii.gz` and `folder/report.json`.

    `folder/labels.txt` has the names and colours of the masks' values.

    A classifier writes `folder/predictions.csv` instead of masks; see `classify`.

    The report is written anew after each case, so that an interrupted prediction can go on.

    Args:
        model: A run, `latest`, a checkpoint file or `models:/name@alias`; everything else comes from it.
        inputs: NIfTI files, folders of them, or folders with DICOM series; for a classifier also PNG, JPEG
            and `.npz`.
        folder: Where masks go.
        device: `auto`, `cpu` or `cuda`.
        max_memory: A size such as `2GiB` that the prediction keeps within; None for what is free.
        rules: Which DICOM series each channel is, where inputs are DICOM.
        resume: Whether to keep the masks that this model made of these very files before.
        with_probabilities: Whether to write `folder/probabilities/<case>.nii` as well.
        compiles: Whether to compile the networks first.
        also: Further forms of each mask, keys of `EXPORTERS`: `folder/<form>/<case>.dcm`.
        method: How to show what a classifier's answers rest on; None to show nothing.
        on_plan: Is told each case's plan before its first window.

    Returns:
        One report per case; a refused case carries its faults.

    Raises:
        FaultError: If nothing can be predicted at all: no such model or input, or no place to write.
    """
    means = find_means(model, device, max_memory, inputs, folder)
    checkpoint, limit = means.checkpoint, means.max_memory
    asked = {
        "--max-memory": limit is not None,
        "--resume": resume,
        "--probabilities": with_probabilities,
        "--compile": compiles,
        "--also": not set(also) <= {REPORT},
    }
    _refuse_task(checkpoint, asked, method)
    if checkpoint.job.get("task") == "classification":
        maker = describe_maker(checkpoint, "classifier") if also else None
        return classify(checkpoint, inputs, folder, means.device, method, rules, maker)
    exports = _choose_exports(also, checkpoint, with_probabilities=with_probabilities)
    predictor = load_predictor(checkpoint, means.device, limit, compiles=compiles)
    cases = find_inputs(inputs, predictor.num_channels, rules)
    refuse_unused_rules(cases, rules)
    if exports is not None:
        refuse_without_series(cases)
    refuse_overwriting(cases, lambda case: _outputs(folder, case.id), "mask", folder)
    check_writable(folder)
    write_label_table(folder / "labels.txt", predictor.contract)
    path = folder / "report.json"
    expected = {"model_sha256": checkpoint.content_hash}
    finished = find_finished(path, expected, cases, _parse, mask_hashes) if resume else {}
    if with_probabilities:
        finished = {
            name: report for name, report in finished.items() if probabilities_path(folder, name).is_file()
        }
    if exports is not None:
        finished = {
            name: report
            for name, report in finished.items()
            if set(exports.forms) <= set(report.exports or ())
        }
    reports = dict(finished)
    pending = [case for case in cases if case.id not in finished]
    log = AuditLog(folder, describe_model(checkpoint, predictor.device))
    memory = freed_memory_kept() if limit is None else nullcontext()
    with memory, progress_bar("Predicting cases", len(pending)) as advance:

        def keep(report: CaseReport) -> None:
            if report.mask is None:  # what an earlier prediction left would pass for one of this model
                remove_files(_outputs(folder, report.case))
            reports[report.case] = report
            log.add(report.case, report.input_hashes, mask_hashes(report), report.faults)
            write_report(path, checkpoint, predictor, list(reports.values()), log.head)
            advance()

        predict_cohort(
            predictor, pending, folder, keep, on_plan, with_probabilities=with_probabilities, exports=exports
        )
    write_report(path, checkpoint, predictor, [reports[case.id] for case in cases], log.head)
    return [reports[case.id] for case in cases]


def write_report(
    path: Path,
    checkpoint: Checkpoint,
    predictor: Predictor,
    reports: Sequence[CaseReport],
    audit_head: str | None = None,
) -> None:
    """Writes what was predicted with what, as JSON; where there is a log, with the hash of its last line."""
    content = {
        **describe_model(checkpoint, predictor.device),
        "labels": dict(predictor.contract.labels),
        "structures": {name: list(values) for name, values in predictor.contract.structures.items()},
        "terminology": {name: asdict(term) for name, term in predictor.contract.terms.items()},
        "audit_head": audit_head,
        "cases": [_describe(report) for report in reports],
    }
    write_json(path, content)


def _describe(report: CaseReport) -> dict[str, object]:
    content = asdict(report)
    content["faults"] = [str(fault) for fault in report.faults]
    content["status"] = "refused" if report.faults else "predicted"
    return content


def _outputs(folder: Path, case: str) -> list[Path]:
    """A mask and all that is made with it, which goes where another mask comes."""
    return [folder / f"{case}.nii.gz", *further_paths(folder, case)]


def _parse(entry: Mapping[str, Any]) -> CaseReport | None:
    is_finished = entry["status"] == "predicted" and entry["mask"] is not None
    return parse_report(CaseReport, entry) if is_finished else None


def _choose_exports(
    also: Sequence[str], checkpoint: Checkpoint, *, with_probabilities: bool
) -> Exports | None:
    """The further forms that were asked for; raises ConfigError for those that there are not."""
    forms = tuple(dict.fromkeys(also))
    if unknown := [form for form in forms if form not in EXPORTERS]:
        message = f"there is no form {', '.join(map(repr, unknown))}; there are {', '.join(EXPORTERS)}"
        raise ConfigError(Fault("--also", "unknown-form", message))
    if not with_probabilities and (needing := [form for form in forms if form in NEED_PROBABILITIES]):
        message = f"{', '.join(needing)} is made of probabilities; add --probabilities"
        raise ConfigError(Fault("--also", "no-probabilities", message))
    return Exports(forms, describe_maker(checkpoint, "segmentation model")) if forms else None


def _refuse_task(checkpoint: Checkpoint, asked: Mapping[str, bool], method: Method | None) -> None:
    """Refuses options and models that are for other tasks."""
    task = checkpoint.job.get("task")
    if task == "enhancement":
        message = "this model enhances images; use `clinseg enhance`"
        raise ConfigError(Fault("model", "other-task", message))
    if task == "classification":
        if wrong := [option for option, is_asked in asked.items() if is_asked]:
            message = (
                "is for segmentation, and this model is a classifier; leave it out (of --also only dicom-sr "
                "is for both)"
            )
            raise ConfigError(Fault(option, "other-task", message) for option in wrong)
    elif method is not None:
        message = "explains a classifier's answers, and this model is none; leave it out"
        raise ConfigError(Fault("--explain", "other-task", message))
