"""Overlays of label maps on images, and training curves, as PNG files.

Planes are shown as radiologists look at them: axial from the feet and coronal from the front, so that the
patient's right is on the left of the picture; sagittal with the patient's front on the left.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.metrics import label_map_dice
from pipeline.report.charts import curve_styles, name_entries, save_page, style_axes, white_page
from pipeline.report.layout import INK, PAPER, lay_out, structure_styles, text_style
from pipeline.report.scene import Array, Plane, Scene, compose_scene
from pipeline.volume import Volume


def draw_overlay(
    path: Path,
    *,
    image: Volume,
    prediction: Volume,
    reference: Volume | None,
    labels: Mapping[str, int],
    title: str,
    unlabelled: Collection[int] = (),
    ignore_value: int | None = None,
) -> None:
    """Draws one case as a PNG: the image alone, with the reference and with the prediction, in three planes.

    All panels have one scale. Dashed lines on the image show where the other planes cut; on the prediction
    the reference is a white outline. `scene.compose_scene` says what is chosen for display.

    Args:
        path: Where to write; the file is whole or absent.
        image: What was segmented.
        prediction: Label map on the grid of `image`.
        reference: Label map on the same grid, or None; with it the legend gives the Dice.
        labels: Value of each label, in the order of the legend; background (0) is not drawn. Values found in
            a map but missing here are drawn under their number.
        title: Heading, such as the case id.
        unlabelled: Values that nobody drew in the reference; the legend gives no Dice for them.
        ignore_value: What the reference holds where nobody knows; the Dice leaves these voxels out.

    Raises:
        ResourceError: If the file cannot be written.
    """
    maps = {"Reference": reference} if reference is not None else {}
    maps["Prediction"] = prediction
    ignored = {} if ignore_value is None else {"ignored": ignore_value}
    values = _drawn_values({**labels, **ignored}, maps)
    scene = compose_scene(image, maps, [value for value in values.values() if value != ignore_value])
    figure, panels = lay_out(scene, legend_texts(scene, values, unlabelled, ignore_value), title)
    for (row, plane), axes in panels.items():
        _draw_image(axes, scene, plane)
        _draw_letters(axes, plane)
        if row == "Image":
            _draw_cuts(axes, scene, plane)
        else:
            _draw_structures(axes, scene, plane, row, values)
        if row == "Prediction" and reference is not None:
            _draw_outlines(axes, scene, plane, values)
    _draw_scale_bar(panels["Image", scene.planes[0]], scene.extent(scene.planes[0].horizontal))
    save_page(figure, path)


def draw_curves(path: Path, metrics: Mapping[str, Sequence[tuple[int, float]]], title: str) -> None:
    """Draws losses on the left and Dice on the right over epochs, as a PNG.

    Args:
        path: Where to write; the file is whole or absent.
        metrics: Pairs of epoch and value under names such as `training/loss` and `validation/dice/mean`.
            Names that speak of neither loss nor Dice are left out.
        title: Heading.

    Raises:
        ResourceError: If the file cannot be written.
    """
    figure = white_page((10, 4), title)
    for axes, heading in zip(figure.subplots(1, 2), ("Loss", "Dice"), strict=True):
        _draw_series(axes, {name: p for name, p in metrics.items() if heading.lower() in name.lower() and p})
        axes.set_title(heading, loc="left", fontsize=10)
    figure.axes[1].set_ylim(0, 1)
    save_page(figure, path)


def _drawn_values(labels: Mapping[str, int], maps: Mapping[str, Volume]) -> dict[str, int]:
    found = {int(value) for volume in maps.values() for value in np.unique(volume.array)}
    unnamed = {f"label {value}": value for value in sorted(found - {0, *labels.values()})}
    return {name: value for name, value in labels.items() if value != 0} | unnamed


def legend_texts(
    scene: Scene, values: Mapping[str, int], unlabelled: Collection[int], ignore_value: int | None
) -> list[str]:
    """Names, with the Dice where there is a reference; a label in neither map has none worth a number."""
    present = {value for label_map in scene.maps.values() for value in np.unique(label_map).tolist()}
    texts = {name: name if value in present else f"{name} (absent)" for name, value in values.items()}
    if "Reference" in scene.maps:
        texts |= {name: f"{name} (not labelled)" for name, value in values.items() if value in unlabelled}
        judged = present - {*unlabelled, ignore_value}
        structures = {name: (value,) for name, value in values.items() if value in judged}
        known = scene.maps["Reference"] != ignore_value
        dice = label_map_dice(scene.maps["Prediction"][known], scene.maps["Reference"][known], structures)
        texts |= {name: f"{name}  {share:.3f}" for name, share in dice.items()}
    return list(texts.values())


def _draw_image(axes: Axes, scene: Scene, plane: Plane) -> None:
    grey = scene.slice(scene.image, plane).T.astype(np.float32)
    low, high = scene.window
    rows, columns = grey.shape
    extent = (0.0, columns * scene.spacing[plane.horizontal], 0.0, rows * scene.spacing[plane.vertical])
    axes.imshow(
        grey,
        cmap="gray",
        vmin=low,
        vmax=high,
        origin="lower",
        extent=extent,
        aspect="auto",  # the panel has the right shape already
        interpolation="bilinear",
    )
    first, last = scene.view[plane.horizontal]
    axes.set_xlim(last, first)  # the patient's right and front are on the left
    axes.set_ylim(*scene.view[plane.vertical])
    axes.set_axis_off()


def _draw_letters(axes: Axes, plane: Plane) -> None:
    """Names the anatomical direction of each side."""
    letters = {
        (0.0, 0.5): "RA"[plane.horizontal],
        (1.0, 0.5): "LP"[plane.horizontal],
        (0.5, 1.0): "RAS"[plane.vertical],
        (0.5, 0.0): "LPI"[plane.vertical],
    }
    for (x, y), letter in letters.items():
        _annotate(axes, letter, (x, y), ((0.5 - x) * 16, (0.5 - y) * 16), 8)


def _draw_cuts(axes: Axes, scene: Scene, plane: Plane) -> None:
    """Marks where the other planes cut this one."""
    x, y = ((scene.cut[axis] + 0.5) * scene.spacing[axis] for axis in (plane.horizontal, plane.vertical))
    style: dict[str, Any] = {"color": INK, "lw": 0.6, "ls": (0, (6, 5)), "alpha": 0.45}
    if len(scene.planes) > 1:
        axes.axvline(x, **style)
        axes.axhline(y, **style)


def _draw_structures(axes: Axes, scene: Scene, plane: Plane, row: str, values: Mapping[str, int]) -> None:
    label_map = scene.slice(scene.maps[row], plane)
    for value, (colour, dash) in zip(values.values(), structure_styles(), strict=False):
        if (label_map == value).any():
            field = _contour_field(label_map == value, scene, plane)
            axes.contourf(*field, levels=(0.5, 1.5), colors=[colour], alpha=0.3)
            axes.contour(*field, levels=(0.5,), colors=[colour], linewidths=1.4, linestyles=dash)


def _draw_outlines(axes: Axes, scene: Scene, plane: Plane, values: Mapping[str, int]) -> None:
    label_map = scene.slice(scene.maps["Reference"], plane)
    for value in values.values():
        if (label_map == value).any():
            field = _contour_field(label_map == value, scene, plane)
            axes.contour(*field, levels=(0.5,), colors="white", linewidths=0.7, alpha=0.9)


def _contour_field(mask: NDArray[np.bool_], scene: Scene, plane: Plane) -> tuple[Array, Array, Array]:
    """Voxel centres in millimetres and the mask as `(vertical, horizontal)`, closed at the image's edge."""
    padded = np.pad(mask, 1).T.astype(np.float32)
    x, y = (
        (np.arange(size) - 0.5) * scene.spacing[axis]
        for size, axis in zip(padded.T.shape, (plane.horizontal, plane.vertical), strict=True)
    )
    return x, y, padded


def _draw_scale_bar(axes: Axes, extent_mm: float) -> None:
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


def _draw_series(axes: Axes, series: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    lines = []
    for points, (colour, dash) in zip(series.values(), curve_styles(), strict=False):
        epochs, values = zip(*points, strict=True)
        marker = "o" if len(points) <= 30 else None
        lines += axes.plot(epochs, values, color=colour, linestyle=dash, marker=marker, ms=3, lw=1.6)
    if lines:
        name_entries(axes.legend(lines, [""] * len(lines), frameon=False, fontsize=8), list(series))
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    style_axes(axes)
