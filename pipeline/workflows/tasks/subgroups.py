"""How well a model does in groups of patients: kept beside a run's figures, told by `card` and `report`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pipeline.config import ClassificationDataSection, DataSection
from pipeline.data.cases import Case
from pipeline.data.subgroups import read_subgroups
from pipeline.discrimination import judge_classes
from pipeline.errors import FaultError
from pipeline.files import write_json
from pipeline.inference.class_table import class_targets, read_class_table
from pipeline.inference.metric_table import case_means, read_table
from pipeline.report.content import Cell, Column, Table
from pipeline.statistics import Estimate, summarise
from pipeline.tracking import Record, RunFolder, read_children

SUBGROUPS: Final = Path("subgroups.json")
"""In a run's folder: column → validation case → group."""
FEWEST: Final = 10
"""Cases of a group, below which no figure is told: its interval would hold nearly everything."""
GROUP_NOTE: Final = (
    f"Of the same cases; 95 % intervals. No figure is told of fewer than {FEWEST} cases. Groups were not "
    "compared by a test: intervals that overlap say nothing of a difference, nor that there is none."
)
_CLASS_FIGURES: Final = ("auc", "accuracy", "sensitivity/", "specificity/")

Row = tuple[str, str, int, str, Estimate | None]
"""Column, group, number of cases, figure, and its value; none where there are too few cases."""


def write_subgroups(
    record: Record, section: DataSection | ClassificationDataSection, cases: Sequence[Case]
) -> None:
    """Keeps what groups the validation cases are of, where the job names columns."""
    if not section.subgroups:
        return
    ids = {case.id for case in cases}
    found = {
        column: {case: group for case, group in of_case.items() if case in ids}
        for column, of_case in read_subgroups(section.manifest, section.subgroups).items()
    }
    write_json(record.folder / SUBGROUPS, found)
    record.log_artifact(record.folder / SUBGROUPS)


def judge_subgroups(run: RunFolder, table: Path) -> list[Row]:
    """Figures of every group; of a cross-validation those of all folds.

    Args:
        run: Whose record tells the groups.
        table: The run's own table of cases.
    """
    groups = _read_groups(run)
    if not groups or not table.is_file():
        return []
    try:
        judge = _segmentation if run.task == "segmentation" else _classification
        return list(judge(table, groups))
    except FaultError:
        return []  # a table that was changed since tells nothing


def group_tables(rows: Sequence[Row]) -> list[Table]:
    """A table for each column that a job names."""
    columns = (
        Column("Group"),
        Column("Cases", 0),
        Column("Figure"),
        Column("Value", 4),
        Column("From", 4),
        Column("To", 4),
    )
    tables = []
    for name in dict.fromkeys(column for column, *_ in rows):
        cells: list[tuple[Cell, ...]] = [
            (group, num, figure or None, *((e.value, e.low, e.high) if e is not None else (None,) * 3))
            for column, group, num, figure, e in rows
            if column == name
        ]
        tables.append(Table(f"By {name}", GROUP_NOTE, columns, cells))
    return tables


def _read_groups(run: RunFolder) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for part in (run, *read_children(run)):
        path = part.path / SUBGROUPS
        if not path.is_file():
            continue
        try:
            for column, of_case in json.loads(path.read_text(encoding="utf-8")).items():
                found.setdefault(str(column), {}).update({str(case): str(g) for case, g in of_case.items()})
        except (OSError, ValueError, AttributeError):
            continue
    return found


def _segmentation(table: Path, groups: dict[str, dict[str, str]]) -> Iterator[Row]:
    """Mean Dice of a case over its structures."""
    dice = {row.case: row.values["dice"] for row in case_means(read_table(table))}
    for column, group, members in _members(groups, list(dice)):
        values = [dice[case] for case in members]
        enough = len(values) >= FEWEST
        yield column, group, len(values), "dice, mean", summarise(values).estimate if enough else None


def _classification(table: Path, groups: dict[str, dict[str, str]]) -> Iterator[Row]:
    """What of a classifier's figures the cases of a group define."""
    found = read_class_table(table)
    if found.truth is None:
        return
    is_multi = found.looks_multi_label
    targets = class_targets(found.truth, found.classes, is_multi_label=is_multi)
    answers = class_targets(found.predicted, found.classes, is_multi_label=is_multi)
    places = {case: number for number, case in enumerate(found.cases)}
    for column, group, members in _members(groups, found.cases):
        chosen = [places[case] for case in members]
        if len(chosen) < FEWEST:
            yield column, group, len(chosen), "", None
            continue
        figures = judge_classes(
            found.probabilities[chosen], answers[chosen], targets[chosen], found.classes, is_multi
        )
        for name, estimate in figures.items():
            if name.startswith(_CLASS_FIGURES):
                yield column, group, len(chosen), name, estimate


def _members(groups: dict[str, dict[str, str]], cases: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    for column, of_case in groups.items():
        for group in sorted({of_case[case] for case in cases if case in of_case}):
            yield column, group, [case for case in cases if of_case.get(case) == group]
