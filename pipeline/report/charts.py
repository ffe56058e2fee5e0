"""White pages with charts: what curves, axes and legends look like, and how a page becomes a PNG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from pipeline.files import atomic_path
from pipeline.report.layout import DASHES
from pipeline.terminology import PALETTE

GREY = "#6b7280"
CHANCE: dict[str, Any] = {"color": GREY, "lw": 0.9, "ls": "dotted"}
"""Style of a line that shows what nothing known, or nothing wrong, would look like."""
POINT: dict[str, Any] = {"marker": "o", "ms": 8, "mec": "white", "mew": 1.2, "ls": "none"}
"""Style of a dot that marks a choice on a curve."""
_YELLOW = "#F0E442"
_DPI = 150


def white_page(inches: tuple[float, float], title: str) -> Figure:
    """An empty page of that width and height with a heading."""
    figure = Figure(figsize=inches, facecolor="white", layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", parse_math=False)
    return figure


def curve_styles() -> Iterator[tuple[str, Literal["solid", "dashed", "dotted"]]]:
    """Colour and line style of one curve after the other, without end; no yellow, too faint on white."""
    return cycle((colour, dash) for dash in DASHES for colour in reversed(PALETTE) if colour != _YELLOW)


def style_axes(axes: Axes) -> None:
    """A faint grid, and lines only where the scales are."""
    axes.grid(color="#e4e7eb", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def style_unit_axes(axes: Axes, heading: str, x: str, y: str) -> None:
    """The same for a square panel from 0 to 1 along both axes, with heading and names."""
    style_axes(axes)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_title(heading, loc="left", fontsize=11)
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y)


def shortened(name: str, longest: int = 16) -> str:
    """The name, or its beginning where it is longer than that many letters."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def name_entries(legend: Legend, names: Sequence[str]) -> None:
    """Names the entries afterwards: matplotlib would leave out names with an underscore in front."""
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)


def save_page(figure: Figure, path: Path) -> None:
    """Writes a PNG; the file is whole or absent.

    Raises:
        ResourceError: If the file cannot be written.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)
