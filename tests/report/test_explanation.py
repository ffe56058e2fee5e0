"""A heat map lies on the place that it marks, of any image there is, and says what it is not."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from PIL import Image

from pipeline.report.explanation import NOTE, draw_explanation
from pipeline.report.layout import lay_out
from pipeline.report.scene import PLANES, compose_scene_at_peak
from pipeline.volume import Grid, Volume

TEXTS = {"case": "scan_1", "class_name": "a/$x_1 rather long name", "probability": 0.973}


def volume(array, affine=None):
    return Volume(array, Grid(array.shape, np.eye(4) if affine is None else affine))


def spot(shape, place, width=2.0):
    offsets = np.indices(shape) - np.reshape(place, (3, 1, 1, 1))
    return np.exp(-(offsets**2).sum(0) / (2 * width**2)).astype(np.float32)


def hot_pixels(path):
    """Height and place from the left of what is not grey, as shares of the page."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    rows, columns = np.nonzero(pixels[..., 0] - pixels[..., 2] > 60)
    return 1 - (rows + 0.5) / pixels.shape[0], (columns + 0.5) / pixels.shape[1]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL", "PIR"])
def test_the_planes_meet_in_the_maximum_however_the_image_is_stored(codes):
    shape, place, affine = (12, 15, 9), (3, 11, 6), np.diag([1.0, 2.0, 3.0, 1.0])
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    stored = nib.apply_orientation(spot(shape, place), turn)
    case = volume(stored, affine @ inv_ornt_aff(turn, shape))
    scene = compose_scene_at_peak(case, "Grad-CAM", case, has_geometry=True)
    assert scene.cut == place
    assert scene.spacing == pytest.approx((1.0, 2.0, 3.0))
    assert np.array_equal(scene.maps["Grad-CAM"], spot(shape, place))
    assert [scene.extent(axis) for axis in range(3)] == pytest.approx([12.0, 30.0, 27.0])


def test_of_many_largest_voxels_the_middle_one_is_shown_and_of_none_the_images():
    values = np.zeros((9, 9, 9), np.float32)
    values[1:] = -0.1  # hiding this only helped
    middle = compose_scene_at_peak(volume(values), "Occlusion", volume(values), has_geometry=True)
    assert middle.cut == (4, 4, 4)
    values[1:4, 2:7, 5:8] = 0.3
    box = compose_scene_at_peak(volume(values), "Occlusion", volume(values), has_geometry=True)
    assert box.cut == (2, 4, 6)


def test_the_heat_is_where_radiologists_expect_it_and_only_on_the_lower_row(tmp_path):
    values = volume(spot((40, 40, 40), (8, 31, 31)))  # at the patient's left, front and top
    image = volume(np.random.default_rng(0).random((40, 40, 40), np.float32))
    draw_explanation(tmp_path / "a.png", image=image, values=values, method="grad_cam", **TEXTS)
    scene = compose_scene_at_peak(image, "Grad-CAM", values, has_geometry=True)
    _, panels = lay_out(scene, (), "", 0.85)
    y, x = hot_pixels(tmp_path / "a.png")
    num_in_panels, lowest = 0, min(axes.get_position().y0 for axes in panels.values())
    for plane in PLANES:
        box = panels["Grad-CAM", plane].get_position()
        inside = (x > box.x0) & (x < box.x1) & (y > box.y0) & (y < box.y1)
        assert (x[inside].mean() > (box.x0 + box.x1) / 2) == (plane.name != "Sagittal")
        assert y[inside].mean() > (box.y0 + box.y1) / 2
        num_in_panels += inside.sum()
    assert num_in_panels == (y > lowest).sum()


@pytest.mark.parametrize(("row", "column"), [(5, 20), (20, 5), (20, 25)])
def test_a_picture_stands_upright(tmp_path, row, column):
    shape = (30, 36, 1)
    image, values = volume(np.ones(shape, np.uint8)), volume(spot(shape, (row, column, 0)))
    path = tmp_path / "a.png"
    draw_explanation(path, image=image, values=values, method="occlusion", has_geometry=False, **TEXTS)
    scene = compose_scene_at_peak(image, "Occlusion", values, has_geometry=False)
    _, panels = lay_out(scene, (), "", 0.85)
    box = panels["Occlusion", scene.planes[0]].get_position()
    y, x = hot_pixels(path)
    y, x = y[y > box.y0], x[y > box.y0]  # the colour bar is below
    assert 1 - (y.mean() - box.y0) / box.height == pytest.approx((row + 0.5) / 30, abs=0.03)
    assert (x.mean() - box.x0) / box.width == pytest.approx((column + 0.5) / 36, abs=0.03)
    assert [plane.name for plane in scene.planes] == [""]


@pytest.mark.parametrize(
    ("shape", "value"),
    [((9, 8, 7), -0.2), ((28, 28, 1), 0.0), ((1, 20, 20), 1e-9), ((1, 1, 1), 1.0)],
    ids=str,
)
def test_anything_can_be_drawn(tmp_path, shape, value):
    image, values = volume(np.zeros(shape, np.int16)), volume(np.full(shape, value, np.float32))
    draw_explanation(tmp_path / "a.png", image=image, values=values, method="occlusion", **TEXTS)


def test_the_page_says_class_probability_case_measure_and_what_it_is_not(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig",
        lambda figure, path, **_: (written.extend(t.get_text() for t in figure.texts), path.write_bytes(b"")),
    )
    values = volume(spot((8, 8, 8), (2, 3, 4)))
    draw_explanation(tmp_path / "a.png", image=values, values=values, method="occlusion", **TEXTS)
    assert written[-3:] == ["Drop of the class's probability where this is hidden", NOTE, "scan_1"]
    assert any("probability 0.97" in text for text in written)
