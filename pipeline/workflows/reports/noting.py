"""The note on a run: what MLflow shows above everything else on its page, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from pipeline.report.content import Cell, Report, Table
from pipeline.statistics import interval_text
from pipeline.tracking import NOTE_TAG, RUN_ID, Record, read_settings
from pipeline.workflows.runs.recording import FIRST

_MAX_ROWS: Final = 20  # a tag holds 8000 letters
_MAX_CASES: Final = 8
_MAX_LETTERS: Final = 7500


def set_note(record: Record, page: Report, name: str) -> None:
    """Puts the essence of a run's page into its note.

    Args:
        record: The run.
        page: Its page.
        name: File name of the page among the run's artifacts.
    """
    parameters, tags = read_settings(record.run)
    said = {key for key, value in parameters.items() if value != "null"}
    cases = page.cases or Table("", "", (), ())
    shown = {column.name for column in cases.columns}  # settings of trials are those of the table
    strips = [
        (s.name, f"{s.mean.value:.4f}", interval_text(s.mean, ".4f"), str(len(s.values))) for s in page.strips
    ]
    parts = [
        page.lead,
        _table(("figure", "value", ""), [(f.name, f.value, f.note) for f in page.figures]),
        _table(("structure", "Dice", "95 %", "cases"), strips),
        _table([column.name for column in cases.columns], _texts(cases)),
        f"All of it, with curves and pictures: [{name}]({_link(name)}) among the artifacts.",
        _table(("setting", "value"), [(key, parameters[key]) for key in FIRST if key in said - shown]),
        f"Made by `{tags.get('clinseg.command', 'clinseg')}`; all settings are in `config.yaml`.",
        _picture(record.folder),  # last, for it is shown as large as it is
    ]
    text = "\n\n".join(part for part in parts if part)
    record.set_tags({NOTE_TAG: text if len(text) <= _MAX_LETTERS else f"{text[:_MAX_LETTERS]} …"})


def _texts(table: Table) -> list[list[str]]:
    """The first rows of a table as a page shows them."""
    digits = [column.digits for column in table.columns]
    return [[_text(*item) for item in zip(row, digits, strict=True)] for row in table.rows[:_MAX_CASES]]


def _text(cell: Cell, digits: int | None) -> str:
    if cell is None:
        return "–"
    return cell if isinstance(cell, str) else f"{cell:.{digits or 0}f}"


def _picture(folder: Path) -> str:
    """Of what was drawn the one that tells most: the cases, or at least the curves."""
    drawn = sorted((folder / "overlays").glob("*.png"))
    paths = [*drawn[(len(drawn) - 1) // 2 :][:1], folder / "discrimination.png", folder / "curves.png"]
    found = next((path.relative_to(folder).as_posix() for path in paths if path.is_file()), None)
    return "" if found is None else f"![{Path(found).stem}]({_link(found)})"


def _link(name: str) -> str:
    """Where MLflow's server hands out an artifact of the run."""
    return f"get-artifact?path={quote(name, safe='')}&run_uuid={RUN_ID}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; nothing without rows."""
    lines = [_line(row) for row in rows][:_MAX_ROWS]
    return "\n".join([_line(header), _line(["---"] * len(header)), *lines]) if lines else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Text that is no Markdown, whatever it holds."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", re.sub(r"\s+", " ", text))
