"""The table of metrics: a row per case and structure, and what rows come to over cases."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import Fault, InputError
from pipeline.files import write_text
from pipeline.labels import MEAN
from pipeline.metrics import STRUCTURE_METRICS
from pipeline.statistics import Summary, summarise


@dataclass(frozen=True, slots=True)
class CaseMetrics:
    """One structure of one case.

    Attributes:
        case: Case id.
        structure: Name of the structure.
        values: A value for each of `STRUCTURE_METRICS`.
    """

    case: str
    structure: str
    values: dict[str, float]


def write_metrics(path: Path, rows: Iterable[CaseMetrics]) -> None:
    """Writes one CSV line per case and structure, under `case,label` and the names of `STRUCTURE_METRICS`.

    Raises:
        ResourceError: If the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", "label", *STRUCTURE_METRICS))
    for row in rows:
        numbers = (f"{row.values[name]:.6g}" for name in STRUCTURE_METRICS)
        writer.writerow((row.case, row.structure, *numbers))
    write_text(path, text.getvalue())


def read_table(path: Path) -> list[CaseMetrics]:
    """What `write_metrics` wrote, with the six digits that are in the file.

    Raises:
        InputError: If it cannot be read or is no such table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                CaseMetrics(row["case"], row["label"], {name: float(row[name]) for name in STRUCTURE_METRICS})
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        message = "a table of metrics as `clinseg evaluate` writes it was expected, but it cannot be read"
        raise InputError(Fault(str(path), "table-unreadable", message)) from error


def summarise_structures(
    rows: Sequence[CaseMetrics], metrics: Sequence[str] = STRUCTURE_METRICS
) -> dict[str, dict[str, Summary]]:
    """Each metric over cases, per structure; under `MEAN` over each case's mean over its structures.

    Cases, not structures, are what the confidence intervals take as independent.
    """
    by_structure: dict[str, list[CaseMetrics]] = {}
    for row in rows:
        by_structure.setdefault(row.structure, []).append(row)
    if rows:
        by_structure[MEAN] = case_means(rows)
    return {
        structure: {name: summarise([row.values[name] for row in members]) for name in metrics}
        for structure, members in by_structure.items()
    }


def case_means(rows: Sequence[CaseMetrics]) -> list[CaseMetrics]:
    """Each case's mean over its structures, in the order in which the cases come first."""
    by_case: dict[str, list[CaseMetrics]] = {}
    for row in rows:
        by_case.setdefault(row.case, []).append(row)
    return [CaseMetrics(case, MEAN, _mean_values(of_case)) for case, of_case in by_case.items()]


def _mean_values(rows: Sequence[CaseMetrics]) -> dict[str, float]:
    return {name: float(np.mean([row.values[name] for row in rows])) for name in STRUCTURE_METRICS}
