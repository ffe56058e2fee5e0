"""What an enhancer makes of images, as a sheet of slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.report import content
from pipeline.report.charts import save_page
from pipeline.report.layout import FAINT, INK, PAPER
from pipeline.statistics import Estimate, interval_text

_SIDE = 1.7  # inches
_TITLE = 0.55

Picture = NDArray[np.generic]


def enhancement_figures(estimates: Mapping[str, Estimate]) -> list[content.Figure]:
    """What is known against the truth, before and after, with intervals; none without a truth."""
    shown = {
        "psnr_before": ("PSNR before", 2, " dB"),
        "psnr_after": ("PSNR", 2, " dB"),
        "ssim_before": ("SSIM before", 4, ""),
        "ssim_after": ("SSIM", 4, ""),
        "downstream_dice_before": ("Dice in originals", 4, ""),
        "downstream_dice_after": ("Dice in enhanced", 4, ""),
    }
    return [
        content.Figure(
            title, f"{found.value:.{digits}f}{unit}", f"95 %: {interval_text(found, f'.{digits}f')}"
        )
        for name, (title, digits, unit) in shown.items()
        if (found := estimates.get(name)) is not None
    ]


def draw_sheet(path: Path, rows: Sequence[Mapping[str, Picture]], title: str, note: str) -> None:
    """Draws images side by side as a PNG, with what changed in the last column.

    Args:
        path: Where to write; the file is whole or absent.
        rows: For each sample its pictures by name, `(rows, columns)`, drawn upright as given. A picture whose
            name begins with `change` is drawn in blue (less) and red (more) about black (0); all others of a
            row share one grey scale.
        title: Above the sheet.
        note: Below it.

    Raises:
        ResourceError: If the file cannot be written.
    """
    num_columns = max(len(row) for row in rows)
    width, height = num_columns * _SIDE, len(rows) * (_SIDE + 0.25) + 2 * _TITLE
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    grid = figure.subplots(len(rows), num_columns, squeeze=False)
    figure.subplots_adjust(0.01, _TITLE / height, 0.99, 1 - _TITLE / height, 0.03, 0.12)
    for places, row in zip(grid, rows, strict=True):
        for place in places:
            place.set_axis_off()
        _draw_row(places[: len(row)], row)
    figure.text(0.01, 1 - 0.3 * _TITLE / height, title, va="top", color=INK, fontsize=10, parse_math=False)
    figure.text(
        0.01, 0.3 * _TITLE / height, note, va="bottom", color=FAINT, fontsize=8, parse_math=False, wrap=True
    )
    save_page(figure, path)


def _draw_row(places: Sequence[Axes], row: Mapping[str, Picture]) -> None:
    shown = [picture for name, picture in row.items() if not name.startswith("change")]
    low, high = np.percentile(np.concatenate([picture.ravel() for picture in shown]), (0.5, 99.5))
    for place, (name, picture) in zip(places, row.items(), strict=True):
        if name.startswith("change"):
            bound = float(high - low) / 2 or 1.0
            place.imshow(picture, cmap="berlin", vmin=-bound, vmax=bound)
        else:
            place.imshow(picture, cmap="gray", vmin=low, vmax=high)
        place.set_title(name, color=INK, fontsize=8, pad=3)
