"""What a report says of segmented cases: headlines, structures, and the table, worst first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import repeat
from typing import Any, Final

from pipeline.inference.confusion import Confusion, summarise_confusions
from pipeline.inference.metric_table import CaseMetrics, case_means, summarise_structures
from pipeline.labels import MEAN
from pipeline.report.content import Cell, Column, Figure, Strip, Table
from pipeline.statistics import interval_text

MAX_ROWS: Final = 2000
_MAX_STRUCTURES: Final = 4  # with a column of their own
_MAX_CONFUSED: Final = 12
_OTHERS: Final = {
    "Surface Dice": "nsd",
    "HD95 (mm)": "hd95_mm",
    "Sensitivity": "sensitivity",
    "Precision": "precision",
}


def segmentation_figures(rows: Sequence[CaseMetrics]) -> list[Figure]:
    """Means over cases with their intervals; none without cases."""
    if not rows:
        return []
    means = summarise_structures(case_means(rows), ("dice", "nsd", "hd95_mm"))[MEAN]
    names = {"dice": ("Dice", 4, ""), "nsd": ("Surface Dice", 3, ""), "hd95_mm": ("HD95", 2, " mm")}
    figures = [
        Figure(name, f"{mean.mean:.{digits}f}{unit}", f"95 %: {interval_text(mean, f'.{digits}f')}")
        for metric, mean in means.items()
        for name, digits, unit in [names[metric]]
    ]
    return [*figures, Figure("Cases", str(means["dice"].num), "on the patients' own grids")]


def structure_strips(rows: Sequence[CaseMetrics], colours: Mapping[str, str]) -> list[Strip]:
    """One per structure and, of several, one of their mean.

    Args:
        rows: Metrics of all cases.
        colours: Of the structures' overlays, by name.
    """
    by_structure: dict[str, list[CaseMetrics]] = {}
    for row in rows:
        by_structure.setdefault(row.structure, []).append(row)
    if len(by_structure) > 1:
        by_structure[MEAN] = case_means(rows)
    strips = []
    for name, members in by_structure.items():
        dice = summarise_structures(members, ("dice",))[name]["dice"]
        others = {
            title: sum(row.values[metric] for row in members) / len(members)
            for title, metric in _OTHERS.items()
        }
        values = tuple(row.values["dice"] for row in members)
        strips.append(Strip(name, colours.get(name), values, dice.estimate, others))
    return strips


def confusion_table(found: Sequence[Confusion], structures: Collection[str]) -> Table | None:
    """What was taken for what; None where structures have no sides and none was taken for another.

    Args:
        found: Of each case.
        structures: Names of all that were compared.
    """
    told = summarise_confusions(found, sorted(structures))
    sides = [one for one in told if one.is_other_side]
    others = [one for one in told if not one.is_other_side]
    if not told:
        return None
    note = "Voxels of one structure that were marked as another; the largest share of the former in a case."
    if sides:
        clean = "Left and right were never confused. " if not any(one.num_cases for one in sides) else ""
        note = f"{clean}{note} Left and right stand first, also where they were not confused."
    return Table(
        "Structures taken for one another",
        note,
        (
            Column("What it is"),
            Column("Marked as"),
            Column("Cases", 0),
            Column("Volume (ml)", 3),
            Column("Largest share", 4),
        ),
        [
            (one.reference, one.prediction, one.num_cases, one.volume_ml, one.largest_share)
            for one in (*sides, *others[:_MAX_CONFUSED])
        ],
        num_left_out=max(0, len(others) - _MAX_CONFUSED),
    )


def rank_cases(rows: Sequence[CaseMetrics]) -> list[str]:
    """Cases by their mean Dice, the worst first."""
    means = sorted(case_means(rows), key=lambda row: (row.values["dice"], row.case))
    return [row.case for row in means]


def name_rank(place: int, num: int, names: tuple[str, str, str] = ("worst", "median", "best")) -> str:
    """What a case is called among ranked ones, such as `worst` or `number 3`.

    Args:
        place: Where it stands, from 0.
        num: How many there are; an only one is neither the worst nor the best.
        names: Of the first, the one in the middle and the last.
    """
    lowest, middle, highest = names
    found = {(num - 1) // 2: middle, 0: lowest, num - 1: highest} if num > 1 else {}
    return found.get(place, f"number {place + 1}")


def case_table(rows: Sequence[CaseMetrics], entries: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """The table of all cases: what was refused, then the worst.

    Args:
        rows: Metrics, where there are references.
        entries: What `report.json` says of each case.
    """
    if not rows and not entries:
        return None
    table = _judged_table(rows, entries) if rows else _predicted_table(entries)
    return Table(
        "Cases",
        table.note,
        table.columns,
        table.rows[:MAX_ROWS],
        num_left_out=max(0, len(table.rows) - MAX_ROWS),
    )


def _judged_table(rows: Sequence[CaseMetrics], entries: Mapping[str, Mapping[str, Any]]) -> Table:
    structures = list(dict.fromkeys(row.structure for row in rows))
    by_case: dict[str, dict[str, CaseMetrics]] = {}
    for row in rows:
        by_case.setdefault(row.case, {})[row.structure] = row
    means = {row.case: row.values for row in case_means(rows)}
    own = structures if 1 < len(structures) <= _MAX_STRUCTURES else []
    worst = [Column("Worst structure"), Column("Its Dice", 4)] if len(structures) > _MAX_STRUCTURES else []
    columns = (
        Column("Case"),
        Column("Dice", 4),
        *(Column(name, 4) for name in own),
        *worst,
        Column("Surface Dice", 3),
        Column("HD95 (mm)", 2),
        *_work_columns(entries),
    )
    cells: list[tuple[Cell, ...]] = []
    refused = [case for case in entries if case not in means and entries[case].get("faults")]
    for case in refused:
        blank: repeat[None] = repeat(None, len(columns) - 1 - len(_work_columns(entries)))
        cells.append((case, *blank, *_work_cells(entries, case)))
    for case in rank_cases(rows):
        dice: dict[str, float] = {name: row.values["dice"] for name, row in by_case[case].items()}
        lowest = min(dice, key=dice.__getitem__)
        cells.append(
            (
                case,
                means[case]["dice"],
                *(dice.get(name) for name in own),
                *((lowest, dice[lowest]) if worst else ()),
                means[case]["nsd"],
                means[case]["hd95_mm"],
                *_work_cells(entries, case),
            )
        )
    note = "The worst stand first; a click on a heading sorts. Mean over the structures of a case."
    return Table("Cases", note, columns, cells)


def _predicted_table(entries: Mapping[str, Mapping[str, Any]]) -> Table:
    structures = list(
        dict.fromkeys(name for entry in entries.values() for name in entry.get("volumes_ml") or {})
    )[:_MAX_STRUCTURES]
    columns = (Column("Case"), *(Column(f"{name} (ml)", 2) for name in structures), *_work_columns(entries))
    ordered = sorted(
        entries, key=lambda case: (not entries[case].get("faults"), not entries[case].get("warnings"), case)
    )
    cells: list[tuple[Cell, ...]] = []
    for case in ordered:
        volumes = entries[case].get("volumes_ml") or {}
        cells.append((case, *(volumes.get(name) for name in structures), *_work_cells(entries, case)))
    note = "Refused cases stand first, then those with warnings; a click on a heading sorts."
    return Table("Cases", note, columns, cells)


def _work_columns(entries: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    return [Column("Seconds", 2), Column("Windows", 0), Column("Remarks")] if entries else []


def _work_cells(entries: Mapping[str, Mapping[str, Any]], case: str) -> list[Cell]:
    if not entries:
        return []
    entry = entries.get(case, {})
    if entry.get("faults"):
        return [None, None, "refused"]
    num_warnings = len(entry.get("warnings", ()))
    remarks = f"{num_warnings} warning{'s' if num_warnings > 1 else ''}" if num_warnings else None
    return [entry.get("seconds"), entry.get("num_windows"), remarks]
