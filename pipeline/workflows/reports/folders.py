"""What a folder that `clinseg predict` or `evaluate` wrote holds for a report."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pipeline.errors import ConfigError, Fault, FaultError
from pipeline.inference.class_table import ClassTable, read_class_table
from pipeline.inference.confusion import Confusion, read_confusions
from pipeline.inference.explain import DRAWN, METHODS, map_name
from pipeline.inference.metric_table import CaseMetrics, read_table
from pipeline.report.class_tables import class_case_table, class_figures
from pipeline.report.content import Figure, Picture, Table
from pipeline.statistics import Estimate
from pipeline.workflows.reports.material import (
    Labels,
    ReportMaterial,
    case_remarks,
    entries_of,
    existing_masks,
    read_prediction_report,
    version_facts,
    work_facts,
)
from pipeline.workflows.tasks.classification_prediction import EXPLANATIONS, TABLE

_METRICS: Final = ["case", "label", "dice"]
_CONFUSIONS: Final = ["case", "reference", "prediction"]
_FIGURES: Final = ["figure", "value", "low", "high"]
_MAX_PICTURES: Final = 24


def read_folder(folder: Path) -> ReportMaterial:
    """Everything about a folder of predictions, with the tables that `clinseg evaluate -o` put into it.

    Raises:
        ConfigError: If nothing was predicted or evaluated into it.
        InputError: If its `report.json` cannot be understood.
    """
    remarks: list[str] = []
    report = folder / "report.json"
    content: dict[str, Any] = read_prediction_report(report) if report.is_file() else {"cases": []}
    entries = entries_of(content)
    masks = existing_masks(folder, entries)
    rows, confusions, estimates = _read_evaluations(folder, _predicted_at(folder, masks.values()), remarks)
    answers = _read_answers(folder, remarks)
    if not entries and not rows and not estimates and answers is None:
        message = (
            "it holds neither a report.json of `clinseg predict` nor a table of `clinseg evaluate`; name a "
            "run or such a folder"
        )
        raise ConfigError(Fault(str(folder), "nothing-to-report", message))
    num_refused = sum(bool(entry["faults"]) for entry in entries.values())
    figures = class_figures(estimates)
    if not rows:
        figures.append(
            Figure("Cases", str(len(entries)), f"{num_refused} refused" if num_refused else "all predicted")
        )
    return ReportMaterial(
        title=folder.resolve().name,
        lead=_lead(content, len(entries), is_judged=bool(rows or estimates)),
        labels=_labels(content, rows),
        rows=rows,
        confusions=confusions,
        entries=entries if answers is None else {},
        masks=masks,
        figures=figures,
        table=None if answers is None else _answer_table(answers, content),
        pictures=[] if answers is None else _read_explanations(folder / EXPLANATIONS, answers),
        facts=_facts(content, report),
        remarks=[*case_remarks(entries), *remarks],
    )


def _lead(content: Mapping[str, Any], num_cases: int, *, is_judged: bool) -> str:
    model = f" by {content['run']}" if content.get("run") else ""
    judged = ", compared with references" if is_judged else ", not compared with any reference"
    return f"Predictions{model} of {num_cases} cases{judged}."


def _predicted_at(folder: Path, masks: Iterable[Path]) -> int:
    """When the newest prediction was written, in nanoseconds; 0 if there is none."""
    return max((path.stat().st_mtime_ns for path in (*masks, *folder.glob(TABLE))), default=0)


def _read_evaluations(
    folder: Path, predicted_at: int, remarks: list[str]
) -> tuple[list[CaseMetrics], list[Confusion], dict[str, Estimate]]:
    """The newest table of each kind, if it can be of these predictions."""
    rows: list[CaseMetrics] = []
    confusions: list[Confusion] = []
    estimates: dict[str, Estimate] = {}
    for path in sorted(folder.glob("*.csv"), key=lambda path: path.stat().st_mtime):
        with (
            suppress(OSError, UnicodeDecodeError, ValueError, FaultError),
            path.open(newline="", encoding="utf-8") as file,
        ):
            header, *lines = csv.reader(file)
            if header[:3] not in (_METRICS, _CONFUSIONS, _FIGURES[:3]):
                continue
            if path.stat().st_mtime_ns < predicted_at:
                remarks.append(f"{path.name} is older than the predictions and left out; evaluate them again")
            elif header[:3] == _METRICS:
                rows = read_table(path)
            elif header[:3] == _CONFUSIONS:
                confusions = read_confusions(path)
            elif header == _FIGURES:
                estimates = {name: Estimate(*map(float, numbers)) for name, *numbers in lines}
    return rows, confusions, estimates


def _read_answers(folder: Path, remarks: list[str]) -> ClassTable | None:
    if not (folder / TABLE).is_file():
        return None
    try:
        return read_class_table(folder / TABLE)
    except FaultError as error:
        remarks += [f"{TABLE}: {fault.message}" for fault in error.faults]
        return None


def _answer_table(answers: ClassTable, content: Mapping[str, Any]) -> Table:
    is_multi_label = bool((content.get("calibration") or {}).get("multi_label"))
    return class_case_table(answers, is_multi_label=is_multi_label)


def _read_explanations(folder: Path, answers: ClassTable) -> list[Picture]:
    """What is drawn of these answers; a map that lies beside may be of another case, class or model."""
    names = {
        f"{map_name(case, predicted[0], method)}{DRAWN}"
        for case, predicted in zip(answers.cases, answers.predicted, strict=True)
        for method in METHODS
        if predicted
    }
    drawn = sorted(path for path in folder.glob(f"*{DRAWN}") if path.name in names)
    return [Picture(path.stem, path.read_bytes()) for path in drawn[:_MAX_PICTURES]]


def _labels(content: Mapping[str, Any], rows: list[CaseMetrics]) -> Labels:
    names = {str(name): int(value) for name, value in content.get("labels", {}).items()}
    structures = {str(name): tuple(values) for name, values in content.get("structures", {}).items()}
    if not names and rows:  # without a report, evaluate names structures by their value
        found = dict.fromkeys(row.structure for row in rows)
        names = {name: int(name) for name in found if name.isdecimal()}
    structures = structures or {name: (value,) for name, value in names.items() if value}
    told = {name: str(term.get("colour")) for name, term in content.get("terminology", {}).items()}
    by_value = {
        structures[name][0]: colour
        for name, colour in told.items()
        if name in structures and re.fullmatch("#[0-9a-fA-F]{6}", colour)
    }
    return Labels(names, structures, colours=by_value)


def _facts(content: Mapping[str, Any], report: Path) -> dict[str, dict[str, str]]:
    model = {
        "Run": content.get("run"),
        "SHA-256": content.get("model_sha256"),
        "Config, SHA-256": content.get("config_sha256"),
    }
    written = (
        f"{datetime.fromtimestamp(report.stat().st_mtime, UTC).astimezone():%Y-%m-%d %H:%M %Z}"
        if report.is_file()
        else None
    )
    work = {"Written": written, "Device": content.get("device"), **work_facts(entries_of(content))}
    environment = version_facts(content.get("environment", {}))
    groups: dict[str, Mapping[str, object]] = {"Model": model, "Work": work, "Made with": environment}
    return {
        heading: {name: str(value) for name, value in facts.items() if value}
        for heading, facts in groups.items()
        if any(facts.values())
    }
