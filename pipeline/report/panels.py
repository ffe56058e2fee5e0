"""What every picture of slices shows: the image in grey, its directions, its scale, where planes cut.

Planes are shown as radiologists look at them: axial from the feet and coronal from the front, so that the
patient's right is on the left of the picture; sagittal with the patient's front on the left.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from pipeline.report.layout import INK, PAPER, text_style
from pipeline.report.scene import Plane, Scene


def draw_image(axes: Axes, scene: Scene, plane: Plane) -> None:
    """Draws the shown slice in grey and sets the panel's view."""
    grey = scene.slice(scene.image, plane).T.astype(np.float32)
    low, high = scene.window
    axes.imshow(
        grey,
        cmap="gray",
        vmin=low,
        vmax=high,
        origin="lower",
        extent=slice_extent(scene, plane),
        aspect="auto",  # the panel has the right shape already
        interpolation="bilinear",
    )
    first, last = scene.view[plane.horizontal]
    axes.set_xlim(last, first)  # the patient's right and front are on the left
    axes.set_ylim(*scene.view[plane.vertical])
    axes.set_axis_off()


def slice_extent(scene: Scene, plane: Plane) -> tuple[float, float, float, float]:
    """Left, right, lower and upper edge of a whole slice in millimetres, as matplotlib's `extent`."""
    columns, rows = scene.slice(scene.image, plane).shape
    return 0.0, columns * scene.spacing[plane.horizontal], 0.0, rows * scene.spacing[plane.vertical]


def draw_letters(axes: Axes, plane: Plane) -> None:
    """Names the anatomical direction of each side."""
    letters = {
        (0.0, 0.5): "RA"[plane.horizontal],
        (1.0, 0.5): "LP"[plane.horizontal],
        (0.5, 1.0): "RAS"[plane.vertical],
        (0.5, 0.0): "LPI"[plane.vertical],
    }
    for (x, y), letter in letters.items():
        _annotate(axes, letter, (x, y), ((0.5 - x) * 16, (0.5 - y) * 16), 8)


def draw_cuts(axes: Axes, scene: Scene, plane: Plane) -> None:
    """Marks where the other planes cut this one."""
    x, y = ((scene.cut[axis] + 0.5) * scene.spacing[axis] for axis in (plane.horizontal, plane.vertical))
    style: dict[str, Any] = {"color": INK, "lw": 0.6, "ls": (0, (6, 5)), "alpha": 0.45}
    if len(scene.planes) > 1:
        axes.axvline(x, **style)
        axes.axhline(y, **style)


def draw_scale_bar(axes: Axes, extent_mm: float) -> None:
    """A round number of millimetres, at most a third of the panel."""
    power = 10.0 ** math.floor(math.log10(extent_mm / 3))
    length = max(step * power for step in (1, 2, 5) if step * power <= extent_mm / 3)
    ends = (0.04, 0.04 + length / extent_mm)
    for colour, width in ((PAPER, 4), (INK, 2)):
        axes.plot(ends, (0.05, 0.05), color=colour, lw=width, solid_capstyle="butt", transform=axes.transAxes)
    _annotate(axes, f"{length:g} mm", (sum(ends) / 2, 0.05), (0, 7), 7.5)


def _annotate(
    axes: Axes, text: str, position: tuple[float, float], inset: tuple[float, float], size: float
) -> None:
    """Writes at a share of the panel, moved by an inset in points; legible on black and on white."""
    style = text_style(size, INK) | {"path_effects": [withStroke(linewidth=2, foreground=PAPER)]}
    axes.annotate(text, position, inset, "axes fraction", "offset points", **style)
