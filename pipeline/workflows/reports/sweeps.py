"""What a sweep left that a report can tell of: its trials, the best first."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Final

from pipeline.report.content import Cell, Column, Figure, Table
from pipeline.tracking import RunFolder, read_children, read_settings, summarise_run
from pipeline.workflows.reports.facts import run_charts, run_facts
from pipeline.workflows.reports.material import ReportMaterial
from pipeline.workflows.runs.models import WINNER_TAG
from pipeline.workflows.runs.resuming import TRIALS

_NUM_BEFORE_SETTINGS: Final = 4  # run, score, ending, minutes
_MAX_CURVES: Final = 8  # more cannot be told apart


def read_sweep(run: RunFolder) -> ReportMaterial:
    """Everything about a sweep; also of one that goes on."""
    parameters, tags = read_settings(run)
    header, rows = _read_trials(run)
    settings = header[_NUM_BEFORE_SETTINGS:]
    names = [row[0] for row in rows if row[1]]
    best = [part for part in read_children(run) if part.name in names[:_MAX_CURVES]]
    tried = f" of {' and '.join(settings)}" if settings else ""
    return ReportMaterial(
        title=run.name,
        lead=f"Sweep of a {run.task}: {len(rows)} trials{tried}, the best first. The winner was chosen by "
        "the cases that its score is of, so it looks better than it is; judge it on others.",
        figures=_figures(header, rows, tags.get(WINNER_TAG)),
        table=_table(run, header, rows) if rows else None,
        charts=run_charts(run, best),
        facts=run_facts(run, {**parameters, **tags}, summarise_run(run), None, {}),
    )


def _read_trials(run: RunFolder) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of the table of trials, the best first and those that failed last."""
    path = run.path / TRIALS
    if not path.is_file():
        return [], []
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return header, sorted(rows, key=lambda row: (not row[1], -float(row[1] or 0)))


def _figures(header: Sequence[str], rows: Sequence[Sequence[str]], winner: str | None) -> list[Figure]:
    figures = []
    if (row := next((row for row in rows if row[0] == winner), None)) is not None:
        settings = zip(header[_NUM_BEFORE_SETTINGS:], row[_NUM_BEFORE_SETTINGS:], strict=True)
        told = ", ".join(f"{key}: {value}" for key, value in settings)
        figures.append(Figure(f"Best {header[1]}", f"{float(row[1]):.4f}", told))
    num_failed = sum(1 for row in rows if not row[1])
    return [*figures, Figure("Trials", str(len(rows)), f"{num_failed} failed" if num_failed else "")]


def _table(run: RunFolder, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    columns = (Column("Trial"), *map(Column, header[_NUM_BEFORE_SETTINGS:]), Column(header[1], 4))
    cells: list[tuple[Cell, ...]] = [
        (
            row[0].removeprefix(f"{run.name}-"),
            *row[_NUM_BEFORE_SETTINGS:],
            float(row[1]) if row[1] else None,
            float(row[3]),
            row[2],
        )
        for row in rows
    ]
    note = "Each trial is a run of its own with a report; a click on a heading sorts."
    return Table("Trials", note, (*columns, Column("Minutes", 1), Column("Ending")), cells)
