"""What the network looked at, as a heat map over the image."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from pipeline.inference.explain import Method
from pipeline.report.charts import save_page, shortened
from pipeline.report.layout import FAINT, INK, lay_out, text_style
from pipeline.report.panels import draw_cuts, draw_image, draw_letters, draw_scale_bar, slice_extent
from pipeline.report.scene import Plane, Scene, compose_scene_at_peak
from pipeline.volume import Volume

NOTE: Final = "This shows what the network used for its answer, not what is diseased."

_ROWS: Final[dict[Method, str]] = {"grad_cam": "Grad-CAM", "occlusion": "Occlusion"}
_SCALES: Final[dict[Method, str]] = {
    "grad_cam": "Evidence for the class, in shares of its largest value",
    "occlusion": "Drop of the class's probability where this is hidden",
}
_FOOT = 0.85  # inches
_NUM_SHADES = 256


def draw_explanation(
    path: Path,
    *,
    image: Volume,
    values: Volume,
    method: Method,
    case: str,
    class_name: str,
    probability: float,
    has_geometry: bool = True,
) -> None:
    """Draws a case as a PNG: the image alone, and under a heat map, in the planes through the map's maximum.

    The heat map becomes transparent towards 0; what is negative is not drawn.

    Args:
        path: Where to write; the file is whole or absent.
        image: What was classified.
        values: The map on the grid of `image`.
        method: How it was made.
        case: Its id.
        class_name: Whose score the map explains.
        probability: Of that class.
        has_geometry: False for a picture `(rows, columns, 1)` without a place in a patient; it is drawn
            upright, without directions and scale.

    Raises:
        ResourceError: If the file cannot be written.
    """
    row = _ROWS[method]
    scene = compose_scene_at_peak(image, row, values, has_geometry=has_geometry)
    title = f"{shortened(class_name)}, probability {probability:.2f}"
    figure, panels = lay_out(scene, (), title, _FOOT)
    largest = 1.0 if method == "grad_cam" else max(float(values.array.max()), 0.0) or 1.0
    norm, colours = Normalize(0.0, largest), _heat_colours()
    for (name, plane), axes in panels.items():
        draw_image(axes, scene, plane)
        if has_geometry:
            draw_letters(axes, plane)
        if name == row:
            _draw_heat(axes, scene, plane, row, norm, colours)
        else:
            draw_cuts(axes, scene, plane)
    if has_geometry:
        draw_scale_bar(panels["Image", scene.planes[0]], scene.extent(scene.planes[0].horizontal))
    _draw_foot(figure, ScalarMappable(norm, colours), _SCALES[method], shortened(case, 64))
    save_page(figure, path)


def _heat_colours() -> ListedColormap:
    """Dark red to pale yellow, more and more opaque; 0 shows the image as it is."""
    colours = colormaps["inferno"](np.linspace(0.35, 1.0, _NUM_SHADES))
    colours[:, 3] = 0.8 * np.linspace(0.0, 1.0, _NUM_SHADES) ** 0.7
    return ListedColormap(colours)


def _draw_heat(
    axes: Axes, scene: Scene, plane: Plane, row: str, norm: Normalize, colours: ListedColormap
) -> None:
    axes.imshow(
        scene.slice(scene.maps[row], plane).T,
        cmap=colours,
        norm=norm,
        origin="lower",
        extent=slice_extent(scene, plane),
        aspect="auto",
        interpolation="bilinear",
    )
    axes.set_xlim(*scene.view[plane.horizontal][::-1])
    axes.set_ylim(*scene.view[plane.vertical])


def _draw_foot(figure: Figure, heat: ScalarMappable, scale: str, case: str) -> None:
    """The colour bar with what it measures, the note, and whose image this is."""
    width, height = figure.get_size_inches()
    bar = figure.add_axes((0.5 - 1.6 / width, 0.82 / height, 3.2 / width, 0.1 / height), facecolor="#5a5f66")
    figure.colorbar(heat, cax=bar, orientation="horizontal", drawedges=False)
    bar.tick_params(labelsize=8, labelcolor=INK, color=FAINT, length=2, pad=2)
    bar.locator_params(axis="x", nbins=5)
    figure.text(0.5, 1.05 / height, scale, **text_style(8.5, INK))
    figure.text(0.5, 0.4 / height, NOTE, **text_style(8.5))
    figure.text(0.5, 0.18 / height, case, **text_style(8.5))
