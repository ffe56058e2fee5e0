"""Two answers to the same cases against each other, and volumes against their references, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pipeline.report.charts import (
    CHANCE,
    GREY,
    curve_styles,
    name_entries,
    save_page,
    shortened,
    style_axes,
    white_page,
)
from pipeline.statistics import NORMAL_95

Values = NDArray[np.float64]

_MOST_SERIES = 6
"""Structures drawn; of more the first ones, since more colours cannot be told apart."""
_NUM_NAMED = 3
_MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True, eq=False)
class Panel:
    """Volumes of one structure by one arm.

    Attributes:
        structure: Its name.
        arm: Who predicted.
        found: Predicted volume of each case, ml.
        true: Reference volume of each case, ml.
    """

    structure: str
    arm: str
    found: Values
    true: Values


def draw_scatter(
    path: Path, series: Mapping[str, Mapping[str, Values]], cases: Mapping[str, Sequence[str]], measure: str
) -> None:
    """Draws every other arm's value of each case over the first arm's.

    Args:
        path: Where to write; the file is whole or absent.
        series: By structure or class, then by arm (the first being the one compared with): a value per case.
        cases: Ids of the cases, by structure or class.
        measure: What the values are.

    Raises:
        ResourceError: If the file cannot be written.
    """
    shown = dict(list(series.items())[:_MOST_SERIES])
    first, *others = next(iter(shown.values()))
    figure = white_page((4.6 * len(others) + 0.4, 5.2), f"{measure} per case")
    every = np.concatenate([values for arms in shown.values() for values in arms.values()])
    margin = 0.06 * max(float(np.ptp(every)), 0.02)
    ends = float(every.min()) - margin, float(every.max()) + margin
    panels = np.atleast_1d(figure.subplots(1, len(others)))
    for axes, other in zip(panels, others, strict=True):
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        axes.set(xlabel=f"{first}: {measure}", ylabel=f"{other}: {measure}")
        axes.plot(ends, ends, zorder=0, **CHANCE)
        pairs = {name: (arms[first], arms[other]) for name, arms in shown.items()}
        _draw_points(axes, pairs, cases)
    handles = [
        Line2D([], [], ls="none", marker=marker, color=colour, ms=6)
        for _, marker, (colour, _) in zip(shown, _MARKERS, curve_styles(), strict=False)
    ]
    legend = figure.legend(
        handles, [""] * len(handles), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    name_entries(legend, [shortened(name, 24) for name in shown])
    save_page(figure, path)


def draw_agreement(path: Path, panels: Sequence[Panel]) -> None:
    """Draws Bland and Altman's plots (1986, doi:10.1016/S0140-6736(86)90837-8): a row for each structure.

    Args:
        path: Where to write; the file is whole or absent.
        panels: Every structure of every arm, the arms of a structure together.

    Raises:
        ResourceError: If the file cannot be written.
    """
    structures = list(dict.fromkeys(panel.structure for panel in panels))[:_MOST_SERIES]
    arms = list(dict.fromkeys(panel.arm for panel in panels))
    figure = white_page(
        (4.4 * len(arms) + 0.4, 3.0 * len(structures) + 0.6), "Predicted minus reference volume"
    )
    grid = figure.subplots(len(structures), len(arms), squeeze=False, sharex="row", sharey="row")
    for panel in panels:
        if panel.structure in structures:
            row, column = structures.index(panel.structure), arms.index(panel.arm)
            _draw_limits(grid[row, column], panel)
            grid[row, column].set_title(
                f"{panel.arm}: {shortened(panel.structure, 30)}", loc="left", fontsize=10, parse_math=False
            )
    for axes in grid[:, 0]:
        axes.set_ylabel("Difference (ml)")
    for axes in grid[-1]:
        axes.set_xlabel("Mean of both (ml)")
    save_page(figure, path)


def _draw_limits(axes: Axes, panel: Panel) -> None:
    difference, middle = panel.found - panel.true, (panel.found + panel.true) / 2
    colour = next(curve_styles())[0]
    axes.plot(middle, difference, ls="none", marker="o", ms=4.5, mfc=colour, mec="white", mew=0.6, alpha=0.85)
    bias = float(difference.mean())
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    axes.axhline(0, zorder=0, **CHANCE)
    axes.axhline(bias, color=GREY, lw=1.2)
    for sign in (-1, 1):
        axes.axhline(bias + sign * NORMAL_95 * spread, color=GREY, lw=0.9, ls="dashed")
    text = f"mean {bias:+.3g}, limits {bias - NORMAL_95 * spread:+.3g} to {bias + NORMAL_95 * spread:+.3g}"
    axes.text(0.98, 0.03, text, transform=axes.transAxes, ha="right", fontsize=8, color=GREY)
    style_axes(axes)
    axes.margins(y=0.25)


def _draw_points(
    axes: Axes, pairs: Mapping[str, tuple[Values, Values]], cases: Mapping[str, Sequence[str]]
) -> None:
    """A colour and marker for each structure, and the names of the cases that changed most."""
    points: list[tuple[float, float, str]] = []
    for (name, (x, y)), marker, (colour, _) in zip(pairs.items(), _MARKERS, curve_styles(), strict=False):
        axes.plot(x, y, ls="none", marker=marker, ms=5, mfc=colour, mec="white", mew=0.6, alpha=0.85)
        points += zip(x.tolist(), y.tolist(), cases[name], strict=True)
    _name_changed(axes, points)
    style_axes(axes)


def _name_changed(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Writes its case beside each of the points farthest from the line, on the side with more room."""
    middle = sum(axes.get_xlim()) / 2
    for x, y, case in sorted(points, key=lambda point: -abs(point[1] - point[0]))[:_NUM_NAMED]:
        if x != y:
            style: dict[str, Any] = {"fontsize": 7, "color": GREY, "parse_math": False}
            style |= {"ha": "left", "xytext": (6, -3)} if x < middle else {"ha": "right", "xytext": (-6, -3)}
            axes.annotate(shortened(case, 20), (x, y), textcoords="offset points", **style)
