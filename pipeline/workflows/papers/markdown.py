"""Markdown for people: tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """A table in Markdown; what a cell holds stays text."""
    yield _row(heading)
    yield _row(["---"] * len(heading))
    yield from map(_row, rows)


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
