"""Overlays of label maps on images, and training curves, as PNG files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.metrics import label_map_dice
from pipeline.report.charts import curve_styles, name_entries, save_page, style_axes, white_page
from pipeline.report.layout import Dash, lay_out, structure_styles
from pipeline.report.panels import draw_cuts, draw_image, draw_letters, draw_scale_bar
from pipeline.report.scene import Array, Plane, Scene, compose_scene
from pipeline.volume import Volume

_SHARES: Final = {
    "validation/dice": "Dice",
    "validation/auc": "AUC",
    "validation/accuracy": "Accuracy",
    "validation/ssim": "SSIM",
}
"""Figures between 0 and 1 that are drawn over epochs, by how their names begin."""
_JUDGEMENT: Final = "training/judgement_"
_ENTRY_INCHES: Final = 0.17
"""Height of a line of a legend below its panel."""
_NO_LOSSES: Final = ("training/learning_rate", "training/epoch_seconds", "training/patches_per_second")


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
    beside: Sequence[Volume] = (),
    colours: Mapping[int, str] | None = None,
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
        beside: Other predictions of the case, so that their pictures show the same slices.
        colours: `#rrggbb` by value; those missing take their place in the palette.

    Raises:
        ResourceError: If the file cannot be written.
    """
    maps = {"Reference": reference} if reference is not None else {}
    maps["Prediction"] = prediction
    ignored = {} if ignore_value is None else {"ignored": ignore_value}
    values = drawn_values({**labels, **ignored}, maps)
    structures = [value for value in values.values() if value != ignore_value]
    scene = compose_scene(image, maps, structures, beside)
    texts = legend_texts(scene, values, unlabelled, ignore_value)
    styles = dict(zip(values.values(), structure_styles(values.values(), colours or {}), strict=True))
    legend = [(text, *style) for text, style in zip(texts, styles.values(), strict=True)]
    figure, panels = lay_out(scene, legend, title)
    for (row, plane), axes in panels.items():
        draw_image(axes, scene, plane)
        draw_letters(axes, plane)
        if row == "Image":
            draw_cuts(axes, scene, plane)
        else:
            _draw_structures(axes, scene, plane, row, styles)
        if row == "Prediction" and reference is not None:
            _draw_outlines(axes, scene, plane, values)
    draw_scale_bar(panels["Image", scene.planes[0]], scene.extent(scene.planes[0].horizontal))
    save_page(figure, path)


def draw_curves(path: Path, metrics: Mapping[str, Sequence[tuple[int, float]]], title: str) -> None:
    """Draws losses, what discriminators judged, and how well validation cases are answered, as a PNG.

    Args:
        path: Where to write; the file is whole or absent.
        metrics: Pairs of epoch and value under names such as `training/loss` and `validation/dice/mean`.
            What is neither a loss, a judgement nor a share (Dice, AUC, accuracy, SSIM) is left out.
        title: Heading.

    Raises:
        ResourceError: If the file cannot be written.
    """
    known = {name: points for name, points in metrics.items() if points}
    shares = {name: [heading for part, heading in _SHARES.items() if part in name] for name in known}
    right = {name: known[name] for name, headings in shares.items() if headings}
    trained = {name: known[name] for name in known if "training/" in name and not name.endswith(_NO_LOSSES)}
    judged = {name: points for name, points in trained.items() if _JUDGEMENT in name}
    left = {name: points for name, points in trained.items() if name not in judged}
    told = ", ".join(dict.fromkeys(heading for headings in shares.values() for heading in headings))
    middle = [("Taken for real by discriminators (1) or made (0)", judged)] if judged else []
    panels = [("Loss", left), *middle, (told or "Not validated", right)]
    longest = max(len(series) for _, series in panels)
    figure = white_page((5 * len(panels), 4 + _ENTRY_INCHES * longest), title)
    # The same epochs in all, also where Dice is known of the last one only.
    for axes, (heading, series) in zip(figure.subplots(1, len(panels), sharex=True), panels, strict=True):
        _draw_series(axes, series)
        axes.set_title(heading, loc="left", fontsize=10)
    figure.axes[-1].set_ylim(0, 1.02)  # a curve along 1 is seen
    save_page(figure, path)


def drawn_values(labels: Mapping[str, int], maps: Mapping[str, Volume]) -> dict[str, int]:
    """The label values that are drawn, in the order of the legend: those declared, then others that occur."""
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


def _draw_structures(
    axes: Axes, scene: Scene, plane: Plane, row: str, styles: Mapping[int, tuple[str, Dash]]
) -> None:
    label_map = scene.slice(scene.maps[row], plane)
    for value, (colour, dash) in styles.items():
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


def _draw_series(axes: Axes, series: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    lines = []
    for points, (colour, dash) in zip(series.values(), curve_styles(), strict=False):
        epochs, values = zip(*points, strict=True)
        marker = "o" if len(points) <= 30 else None
        lines += axes.plot(epochs, values, color=colour, linestyle=dash, marker=marker, ms=3, lw=1.6)
    if lines:
        place = (-0.02, -0.14)  # below, where it covers no curve
        legend = axes.legend(
            lines, [""] * len(lines), frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=place
        )
        name_entries(legend, list(series))
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    style_axes(axes)
