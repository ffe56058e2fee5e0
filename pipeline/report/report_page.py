"""The page of a run or of predictions: what `content.Report` says, with NiiVue to look at cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.report.content import Report, Strip, View
from pipeline.report.cutouts import ADDED, CONFUSED, MISSED, Cutout, cut_out
from pipeline.report.layout import structure_styles
from pipeline.report.page import SORTING, as_data_url, write_page
from pipeline.report.scene import grey_window
from pipeline.statistics import interval_text

_ROOM: Final = Path(__file__).parent
NIIVUE: Final = _ROOM / "niivue/niivue.umd.js"
_VIEWER: Final = _ROOM / "pages/viewer.js"
MAX_VOXELS: Final = 10_000_000
"""Of all cases of a page together: below 30 MB, two bytes each and a third more as base64."""
# David Nichols's three, told apart with any colour vision and none of the overlays' own.
_DIFFERENCES: Final = (
    (MISSED, "missed: in the reference only", "#D81B60"),
    (ADDED, "added: in the prediction only", "#1E88E5"),
    (CONFUSED, "another structure", "#FFC107"),
)


def write_report(path: Path, report: Report) -> None:
    """Writes a report as one HTML file that opens offline.

    Raises:
        ResourceError: If the file cannot be written.
    """
    views = [_describe(view, MAX_VOXELS // len(report.views)) for view in report.views]
    write_page(
        path,
        "report.html",
        scripts=(SORTING, NIIVUE, _VIEWER) if views else (SORTING,),
        data={"views": views, "differences": _legend_of_differences()},
        context={
            "report": report,
            "as_data_url": as_data_url,
            "strips": _lay_out_strips(report.strips),
            "numbers": {view.case: number for number, view in enumerate(report.views)},
        },
    )


def _describe(view: View, max_voxels: int) -> dict[str, Any]:
    """What the viewer needs to know of a case."""
    cutout = cut_out(view, max_voxels)
    styles = structure_styles(view.values.values(), view.colours)
    return {
        "case": view.case,
        "labels": [
            {"name": name, "colour": colour} for name, (colour, _) in zip(view.values, styles, strict=True)
        ],
        "layers": cutout.encode(),
        "affine": cutout.grid.affine.tolist(),
        "shape": list(cutout.grid.shape),
        "toVoxel": np.linalg.inv(next(iter(view.maps.values())).grid.affine)[:3].tolist(),
        "focus": list(cutout.focus),
        "window": list(grey_window(view.image.array)) if view.image is not None else None,
        "note": _tell_extent(view, cutout),
    }


def _tell_extent(view: View, cutout: Cutout) -> str:
    whole = next(iter(view.maps.values())).grid
    shown, sizes = (" × ".join(map(str, shape)) for shape in (cutout.grid.shape, whole.shape))
    spacing = " × ".join(f"{mm:.3g}" for mm in whole.spacing)
    told = f"{sizes} voxels of {spacing} mm, axes {whole.orientation}"
    if cutout.steps != (1, 1, 1):
        steps = " × ".join(map(str, cutout.steps))
        return f"{told}; around the structures one voxel in {steps} is shown, {shown} in all."
    return f"{told}; {shown} around the structures are shown." if shown != sizes else f"{told}."


def _legend_of_differences() -> list[dict[str, Any]]:
    return [{"value": value, "name": name, "colour": colour} for value, name, colour in _DIFFERENCES]


def _lay_out_strips(strips: Sequence[Strip]) -> dict[str, Any]:
    """Strips with their points from 0 to 100 along a common scale, which ends at a Dice of 1."""
    lowest = min((value for strip in strips for value in strip.values), default=0.0)
    start = max(0, int(lowest * 10)) / 10 if lowest < 1 else 0.9

    def place(value: float) -> float:
        return round(100 * (value - start) / (1 - start), 2)

    placed = [
        {
            "strip": strip,
            "points": [place(value) for value in strip.values],
            "mean": place(strip.mean.value),
            "interval": [place(end) for end in ends] if math.isfinite(sum(ends)) else None,
            "told": interval_text(strip.mean, ".4f"),
        }
        for strip in strips
        for ends in [(strip.mean.low, strip.mean.high)]
    ]
    return {"start": start, "rows": placed, "others": list(strips[0].others) if strips else []}
