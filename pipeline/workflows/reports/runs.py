"""What a run left that a report can tell of, read from its folder and those of its folds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from pipeline.checkpoint import Checkpoint, read_checkpoint
from pipeline.config import Job, SegmentationJob, load_job
from pipeline.data.cases import Case, read_manifest
from pipeline.errors import FaultError
from pipeline.inference.class_table import read_class_table
from pipeline.inference.confusion import Confusion, read_confusions
from pipeline.inference.metric_table import CaseMetrics, read_table
from pipeline.inference.predictor import load_contract
from pipeline.report.class_tables import class_case_table, class_figures
from pipeline.report.content import Figure, Picture, Table
from pipeline.report.enhancement import enhancement_figures
from pipeline.statistics import Estimate
from pipeline.tracking import (
    RunFolder,
    RunSummary,
    read_children,
    read_settings,
    summarise_run,
)
from pipeline.workflows.downstream import REPORT
from pipeline.workflows.reports.facts import run_charts, run_facts
from pipeline.workflows.reports.material import (
    Entry,
    Labels,
    ReportMaterial,
    case_remarks,
    drawn_cases,
    entries_of,
    existing_masks,
    read_prediction_report,
    without_folders,
)
from pipeline.workflows.runs.models import BEST
from pipeline.workflows.runs.recording import read_estimates
from pipeline.workflows.runs.resuming import CONFIG
from pipeline.workflows.tasks.enhancement_judging import ENHANCED, gather_remarks
from pipeline.workflows.tasks.segmentation_judging import CONFUSION, MASKS, TABLE
from pipeline.workflows.tasks.subgroups import group_tables, judge_subgroups

_MAX_PICTURES: Final = 24
_FIGURES: Final[Mapping[str, Callable[[Mapping[str, Estimate]], list[Figure]]]] = {
    "classification": class_figures,
    "enhancement": enhancement_figures,
}
"""Headlines of the tasks that do not come from metrics of label maps."""


def read_run(run: RunFolder) -> ReportMaterial:
    """Everything about a run; what it lacks, such as images that were moved, becomes a remark."""
    parts = [run, *read_children(run)]
    parameters, tags = read_settings(run)
    settings, summary = {**parameters, **tags}, summarise_run(run)
    remarks: list[str] = []
    checkpoint = _read_checkpoint(run, remarks)
    entries, masks = _read_predictions(parts, remarks)
    is_segmentation = run.task == "segmentation"
    cases, labels = _read_cases(run, checkpoint, remarks) if is_segmentation else ({}, Labels())
    rows, confusions = _read_rows(run, remarks) if is_segmentation else ([], [])
    return ReportMaterial(
        title=run.name,
        lead=_lead(run, settings, summary),
        labels=labels,
        rows=rows,
        confusions=confusions,
        entries=entries,
        masks=masks,
        cases=cases,
        overlays=drawn_cases(parts),
        figures=_FIGURES[run.task](read_estimates(run)) if run.task in _FIGURES else (),
        table=_read_answers(run, checkpoint, remarks) if run.task == "classification" else None,
        tables=group_tables(judge_subgroups(run, run.path / TABLE)),
        charts=run_charts(run, parts),
        pictures=() if is_segmentation else _pictures(parts),
        facts=run_facts(run, settings, summary, checkpoint, entries),
        remarks=[*downstream_remarks(parts), *_unjudged(run, parts), *case_remarks(entries), *remarks],
    )


def downstream_remarks(parts: Sequence[RunFolder]) -> list[str]:
    """What a segmentation finds in what an enhancer makes, where it was asked, and what was not measured."""
    told = []
    for part in parts:
        path = part.path / ENHANCED / REPORT
        try:
            said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            if said.get("told"):
                mark = "Warning: " if said["warning"] else ""
                told.append(f"{mark}What a segmentation finds in enhanced images: {said['told']}")
            told += [f"Not measured: {without_folders(str(fault))}" for fault in said.get("faults", ())]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            told.append(f"{path.name} of {part.name} cannot be read.")
    return told


def _unjudged(run: RunFolder, parts: Sequence[RunFolder]) -> tuple[str, ...]:
    """Validation cases that no truth could judge."""
    return gather_remarks(parts) if run.task == "enhancement" else ()


def _lead(run: RunFolder, settings: Mapping[str, str], summary: RunSummary) -> str:
    network = settings.get("network.name", "a network").replace("_", " ")
    number = settings.get("clinseg.num_training_cases")
    trained = f" trained on {number} cases" if number else ""
    fold = settings.get("clinseg.fold")
    judged = {"all": ", one network for each fold", "none": ""}.get(
        fold or "none", f", judged on fold {fold}"
    )
    ending = "" if summary.best else f"; the run has no judgement ({summary.status.lower()})"
    return f"{run.task.capitalize()}: {network}{trained}{judged}{ending}."


def _read_checkpoint(run: RunFolder, remarks: list[str]) -> Checkpoint | None:
    path = run.path / BEST
    if not path.is_file():
        remarks.append("The run has kept no checkpoint yet.")
        return None
    try:
        return read_checkpoint(path)
    except FaultError as error:
        remarks += [f"The kept checkpoint: {fault.message} [{fault.rule}]" for fault in error.faults]
        return None


def _read_predictions(
    parts: Sequence[RunFolder], remarks: list[str]
) -> tuple[dict[str, Entry], dict[str, Path]]:
    entries: dict[str, Entry] = {}
    masks: dict[str, Path] = {}
    for part in parts:
        folder = part.path / MASKS
        if not (folder / "report.json").is_file():
            continue
        try:
            own = entries_of(read_prediction_report(folder / "report.json"))
        except FaultError as error:
            remarks += [f"{part.name}: {fault.message}" for fault in error.faults]
            continue
        entries |= own
        masks |= existing_masks(folder, own)
    return entries, masks


def _read_cases(
    run: RunFolder, checkpoint: Checkpoint | None, remarks: list[str]
) -> tuple[dict[str, Case], Labels]:
    """The cases that the job's manifest names, and what label values mean."""
    try:
        job: Job = load_job(run.path / CONFIG)
        assert isinstance(job, SegmentationJob), "the run says that it is one"
        study = read_manifest(job.data)
    except FaultError as error:
        remarks.append(
            "The images of the run are not where it read them, so cases are shown without them "
            f"({error.faults[0].rule}); name them with --images and --references."
        )
        if checkpoint is None:
            return {}, Labels()
        cases, contract = {}, load_contract(checkpoint)
    else:
        cases, contract = {case.id: case for case in study.cases}, study.contract
    return cases, Labels(contract.labels, contract.structures, contract.ignore_value, contract.colours)


def _read_rows(run: RunFolder, remarks: list[str]) -> tuple[list[CaseMetrics], list[Confusion]]:
    rows: list[CaseMetrics] = []
    confusions: list[Confusion] = []
    try:
        if (run.path / TABLE).is_file():
            rows = read_table(run.path / TABLE)
        if (run.path / CONFUSION).is_file():
            confusions = read_confusions(run.path / CONFUSION)
    except FaultError as error:
        remarks += [f"{Path(fault.where).name}: {fault.message}" for fault in error.faults]
    return rows, confusions


def _read_answers(run: RunFolder, checkpoint: Checkpoint | None, remarks: list[str]) -> Table | None:
    if not (run.path / TABLE).is_file() or checkpoint is None:
        return None
    try:
        is_multi_label = bool((checkpoint.calibration or {}).get("multi_label"))
        return class_case_table(read_class_table(run.path / TABLE), is_multi_label=is_multi_label)
    except FaultError as error:
        remarks += [f"{TABLE}: {fault.message}" for fault in error.faults]
        return None


def _pictures(parts: Sequence[RunFolder]) -> list[Picture]:
    drawn = list(drawn_cases(parts).items())[:_MAX_PICTURES]
    return [Picture(case, path.read_bytes()) for case, path in drawn]
