"""The page of an overlay: panels in true proportion, with names, title and legend around them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pipeline.report.scene import Plane, Scene
from pipeline.terminology import PALETTE, fill_colours

Dash = Literal["solid", "dashed", "dotted"]
DASHES: tuple[Dash, ...] = ("solid", "dashed", "dotted")
"""One for each round through the palette."""
PAPER, INK, FAINT = "#0e1116", "#f2f4f7", "#a9b3c1"

# Inches.
_LARGEST = 9.6, 10.0
"""Width and height that all panels together may take."""
_MIN_WIDTH, _SIDE, _TOP, _GAP, _LEGEND_LINE = 5.0, 0.42, 0.75, 0.06, 0.22


def lay_out(
    scene: Scene, legend: Sequence[tuple[str, str, Dash]], title: str, foot: float = 0.0
) -> tuple[Figure, dict[tuple[str, Plane], Axes]]:
    """Makes the page: a row of empty panels for the image and for each label map, a column for each plane.

    Every panel has the same inches per millimetre along both its axes, so nothing is stretched.

    Args:
        scene: What will be drawn.
        legend: Text, colour and line style of each structure.
        title: Heading; shortened to the width of the page.
        foot: Inches left empty under the legend.

    Returns:
        The figure, and its panels by the name of the row and plane.
    """
    rows = ["Image", *scene.maps]
    widths = [scene.extent(plane.horizontal) for plane in scene.planes]
    tallest = max(scene.extent(plane.vertical) for plane in scene.planes)
    scale = min(_LARGEST[0] / sum(widths), _LARGEST[1] / (tallest * len(rows)))
    block = scale * sum(widths) + _GAP * (len(widths) - 1)
    width = max(_MIN_WIDTH, block + 2 * _SIDE)
    num_columns = max(
        1, int((width - 0.4) / (0.6 + 0.075 * max((len(text) for text, _, _ in legend), default=0)))
    )
    bottom = _LEGEND_LINE * (math.ceil(len(legend) / num_columns) + 1.5) + foot
    height = _TOP + len(rows) * (scale * tallest + _GAP) + bottom
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    panels = {}
    for index, row in enumerate(rows):
        left = (width - block) / 2
        middle = height - _TOP - index * (scale * tallest + _GAP) - scale * tallest / 2
        figure.text((left - 0.18) / width, middle / height, row, rotation=90, **text_style(9))
        for plane in scene.planes:
            panels[row, plane] = _add_panel(figure, scene, plane, scale, left, middle)
            left += scale * scene.extent(plane.horizontal) + _GAP
    _add_headings(figure, title, panels)
    _add_legend(figure, legend, num_columns, has_reference="Reference" in scene.maps)
    return figure, panels


def structure_styles(values: Collection[int], colours: Mapping[int, str]) -> list[tuple[str, Dash]]:
    """Colour and line style of each structure; what has no colour of its own takes that of its place."""
    filled = fill_colours(colours.get(value) for value in values)
    return [(colour, DASHES[place // len(PALETTE) % len(DASHES)]) for place, colour in enumerate(filled)]


def text_style(size: float, colour: str = FAINT) -> dict[str, Any]:
    """Settings of text centred on its point; names may hold `$`, which is no formula here."""
    return {"fontsize": size, "color": colour, "ha": "center", "va": "center", "parse_math": False}


def _add_panel(figure: Figure, scene: Scene, plane: Plane, scale: float, left: float, middle: float) -> Axes:
    page_width, page_height = figure.get_size_inches()
    width, height = scale * scene.extent(plane.horizontal), scale * scene.extent(plane.vertical)
    return figure.add_axes(
        (left / page_width, (middle - height / 2) / page_height, width / page_width, height / page_height)
    )


def _add_headings(figure: Figure, title: str, panels: dict[tuple[str, Plane], Axes]) -> None:
    width, height = figure.get_size_inches()
    longest = int((width - 0.6) / 0.15)
    short = title if len(title) <= longest else title[: longest - 1] + "…"
    figure.text(0.5, 1 - 0.27 / height, short, fontweight="bold", **text_style(13, INK))
    for (row, plane), axes in panels.items():
        if row == "Image":
            box = axes.get_position()
            figure.text((box.x0 + box.x1) / 2, 1 - (_TOP - 0.14) / height, plane.name, **text_style(9))


def _add_legend(
    figure: Figure, entries: Sequence[tuple[str, str, Dash]], num_columns: int, *, has_reference: bool
) -> None:
    texts = [text for text, _, _ in entries]
    handles = [
        Patch(facecolor=(colour, 0.45), edgecolor=colour, linestyle=dash) for _, colour, dash in entries
    ]
    legend = figure.legend(
        handles,
        [""] * len(texts),
        title="Dice of the prediction with the reference (white outline)"
        if has_reference and texts
        else None,
        loc="lower center",
        ncols=num_columns,
        frameon=False,
        labelcolor=INK,
        fontsize=9,
        columnspacing=1.6,
        handlelength=1.5,
    )
    legend.get_title().set(color=FAINT, fontsize=8)
    # Set afterwards: matplotlib would leave out names that begin with an underscore.
    for entry, text in zip(legend.get_texts(), texts, strict=True):
        entry.set(text=text, parse_math=False)
