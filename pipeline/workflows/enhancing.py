"""`clinseg enhance`: enhanced images, what was changed in them, and a report of every case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.data.cases import Case
from pipeline.data.dicom import SeriesRule
from pipeline.data.images import find_inputs
from pipeline.errors import ConfigError, Fault
from pipeline.files import check_writable, write_json
from pipeline.inference.budget import Plan
from pipeline.inference.cohort import hash_inputs
from pipeline.inference.enhancer import load_enhancer
from pipeline.inference.enhancing import EnhancementReport, enhance_cohort, output_names
from pipeline.inference.pairing import pair_truths
from pipeline.memory import freed_memory_kept
from pipeline.progress import progress_bar
from pipeline.statistics import Summary, summarise
from pipeline.workflows.applying.case_reports import (
    describe_model,
    find_finished,
    find_means,
    parse_report,
)
from pipeline.workflows.applying.refusing import refuse_overwriting, refuse_unused_rules
from pipeline.workflows.auditing import AuditLog


@dataclass(frozen=True, slots=True)
class Enhancement:
    """What came of it.

    Attributes:
        reports: One per case.
        figures: PSNR and SSIM over the cases that have a truth; see `EnhancementReport.figures`.
        faults: Why cases are missing from the images or from the figures.
    """

    reports: list[EnhancementReport]
    figures: dict[str, Summary]
    faults: list[Fault]


def enhance(
    model: str,
    inputs: Sequence[Path],
    folder: Path,
    device: str = "auto",
    max_memory: str | None = None,
    *,
    rules: Sequence[SeriesRule] = (SeriesRule(),),
    resume: bool = False,
    reverse: bool = False,
    truth: Path | None = None,
    on_plan: Callable[[str, Plan], None] = lambda case, plan: None,
) -> Enhancement:
    """Enhances every input with a trained model; writes images, changes and `folder/report.json`.

    The report is written anew after each case, so that an interrupted enhancement can go on.

    Args:
        model: A run, `latest`, a checkpoint file or `models:/name@alias`; everything else comes from it.
        inputs: NIfTI files, folders of them, or folders with DICOM series.
        folder: Where images go.
        device: `auto`, `cpu` or `cuda`.
        max_memory: A size such as `2GiB` that the enhancement keeps within; None for what is free.
        rules: Which DICOM series each channel is, where inputs are DICOM.
        resume: Whether to keep the images that this model made of these very files before.
        reverse: Whether to go from the target to the source.
        truth: What the images should look like, in the form of the inputs; None to compare with nothing.
        on_plan: Is told each case's plan before its first window.

    Raises:
        FaultError: If nothing can be enhanced at all: no such model or input, or no place to write.
    """
    means = find_means(model, device, max_memory, [*inputs, *([truth] if truth is not None else [])], folder)
    checkpoint = means.checkpoint
    if checkpoint.job.get("task") != "enhancement":
        message = "this model does not enhance images; use `clinseg predict`"
        raise ConfigError(Fault("model", "other-task", message))
    enhancer = load_enhancer(checkpoint, means.device, means.max_memory, reverse=reverse)
    num_channels = len(enhancer.channels)
    cases = find_inputs(inputs, num_channels, rules)
    truths, faults = pair_truths(cases, truth, num_channels, rules) if truth is not None else ({}, [])
    refuse_unused_rules(cases, rules)
    refuse_overwriting(
        cases,
        lambda case: [folder / name for name in output_names(case.id, num_channels)],
        "enhanced image",
        folder,
        truths.values(),
    )
    check_writable(folder)
    path = folder / "report.json"
    made_by = {"model_sha256": checkpoint.content_hash, "reverse": reverse}
    finished = _find_finished(path, made_by, cases, truths) if resume else {}
    reports = dict(finished)
    pending = [case for case in cases if case.id not in finished]
    about = {
        **describe_model(checkpoint, enhancer.device),
        "reverse": reverse,
        "channels": list(enhancer.channels),
        "truth": None if truth is None else str(truth),
    }
    log = AuditLog(folder, about)
    memory = freed_memory_kept() if means.max_memory is None else nullcontext()
    with memory, progress_bar("Enhancing cases", len(pending)) as advance:

        def keep(report: EnhancementReport) -> None:
            reports[report.case] = report
            log.add(report.case, report.input_hashes, report.files or {}, report.faults)
            _write_report(path, about | {"audit_head": log.head}, list(reports.values()))
            advance()

        enhance_cohort(
            enhancer,
            pending,
            folder,
            model=str(checkpoint.content_hash),
            truths=truths,
            on_case=keep,
            on_plan=on_plan,
        )
    ordered = [reports[case.id] for case in cases]
    _write_report(path, about | {"audit_head": log.head}, ordered)
    return Enhancement(
        ordered, _summarise(ordered), [*(f for report in ordered for f in report.faults), *faults]
    )


def _summarise(reports: Sequence[EnhancementReport]) -> dict[str, Summary]:
    """Each figure over the cases that have it; where nothing differs PSNR is infinite and left out."""
    found: dict[str, list[float]] = {}
    for report in reports:
        for name, value in (report.figures or {}).items():
            if value is not None:
                found.setdefault(name, []).append(value)
    return {name: summarise(values) for name, values in found.items()}


def _write_report(path: Path, about: Mapping[str, object], reports: Sequence[EnhancementReport]) -> None:
    """Writes what was enhanced with what, as JSON."""
    content = {
        **about,
        "figures": {name: asdict(summary) for name, summary in _summarise(reports).items()},
        "cases": [_describe(report) for report in reports],
    }
    write_json(path, content)


def _describe(report: EnhancementReport) -> dict[str, object]:
    content = asdict(report)
    content["faults"] = [str(fault) for fault in report.faults]
    content["status"] = "refused" if report.files is None else "enhanced"
    return content


def _find_finished(
    path: Path, made_by: Mapping[str, object], cases: Sequence[Case], truths: Mapping[str, Case]
) -> dict[str, EnhancementReport]:
    """Those whose images are finished, and compared with the very truth that is given."""
    finished = find_finished(path, made_by, cases, _parse, _files)
    return {
        name: report
        for name, report in finished.items()
        if report.truth_hashes == (hash_inputs(truths[name]) if name in truths else ())
    }


def _parse(entry: Mapping[str, Any]) -> EnhancementReport | None:
    # One that could not be compared is made again.
    is_finished = entry["status"] == "enhanced" and entry["files"] is not None and not entry["faults"]
    return parse_report(EnhancementReport, entry) if is_finished else None


def _files(report: EnhancementReport) -> dict[str, str]:
    return report.files or {}
