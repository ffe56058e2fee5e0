"""Pictures show the right side, in true proportion, and of any volume there is."""

import numpy as np
import pytest
from matplotlib import colors
from PIL import Image

from pipeline.errors import ResourceError
from pipeline.report.figures import draw_curves, draw_overlay, legend_texts
from pipeline.report.layout import PALETTE, lay_out
from pipeline.report.scene import PLANES, compose_scene
from pipeline.volume import Grid, Volume


def volume(array, spacing=(1.0, 1.0, 1.0), flips=(1, 1, 1)):
    return Volume(array, Grid(array.shape, np.diag([*np.multiply(spacing, flips), 1.0])))


def pixels(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def where(picture, colour, tolerance=12):
    """Rows and columns of the pixels of a colour, the legend left out."""
    wanted = np.multiply(colors.to_rgb(colour), 255)
    rows, columns = np.nonzero((np.abs(picture - wanted) < tolerance).all(axis=2))
    is_panel = rows < 0.93 * picture.shape[0]
    return rows[is_panel], columns[is_panel]


def ball(shape, centre, radius, spacing=(1.0, 1.0, 1.0)):
    offsets = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    return (((offsets * np.reshape(spacing, (3, 1, 1, 1))) ** 2).sum(0) < radius**2).astype(np.uint8)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (1, 1, -1)])
def test_left_right_front_and_top_are_where_radiologists_expect_them(tmp_path, flips):
    label_map = ball((40, 40, 40), (8, 31, 31), 6)  # at the patient's left, front and top
    stored = label_map[:: flips[0], :: flips[1], :: flips[2]]
    case = volume(stored, flips=flips)
    draw_overlay(tmp_path / "a.png", image=case, prediction=case, reference=None, labels={"x": 1}, title="a")
    scene = compose_scene(case, {"Prediction": case}, [1])
    _, panels = lay_out(scene, [("x", "#ff0000", "solid")], "a")
    picture = pixels(tmp_path / "a.png")
    rows, columns = where(picture, PALETTE[0])
    y, x = 1 - (rows + 0.5) / picture.shape[0], (columns + 0.5) / picture.shape[1]
    for plane in PLANES:
        box = panels["Prediction", plane].get_position()
        inside = (x > box.x0) & (x < box.x1) & (y > box.y0) & (y < box.y1)
        assert inside.any()
        is_right_half = x[inside].mean() > (box.x0 + box.x1) / 2
        assert is_right_half == (plane.name != "Sagittal")
        assert y[inside].mean() > (box.y0 + box.y1) / 2


def test_a_ball_of_millimetres_is_round_in_anisotropic_voxels(tmp_path):
    spacing = (0.7, 1.3, 4.0)
    shape = (90, 50, 16)
    case = volume(ball(shape, (45, 25, 8), 18, spacing), spacing)
    draw_overlay(tmp_path / "a.png", image=case, prediction=case, reference=None, labels={"x": 1}, title="a")
    scene = compose_scene(case, {"Prediction": case}, [1])
    figure, panels = lay_out(scene, [("x", "#ff0000", "solid")], "a")
    inches = figure.get_size_inches()
    for (_, plane), axes in panels.items():
        box = axes.get_position()
        scale = (box.width * inches[0] / scene.extent(plane.horizontal)) / (
            box.height * inches[1] / scene.extent(plane.vertical)
        )
        assert scale == pytest.approx(1.0)
    picture = pixels(tmp_path / "a.png")
    rows, columns = where(picture, PALETTE[0])
    axial = panels["Prediction", PLANES[0]].get_position()
    inside = columns < axial.x1 * picture.shape[1]
    height, width = np.ptp(rows[inside]), np.ptp(columns[inside])
    assert height / width == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize(
    ("shape", "has_reference"),
    [
        ((35, 50, 36), True),
        ((40, 30, 1), False),
        ((1, 30, 40), True),
        ((60, 60, 3), False),
        ((1, 1, 1), True),
    ],
)
def test_any_shape_can_be_drawn(tmp_path, shape, has_reference):
    rng = np.random.default_rng(0)
    image, label_map = volume(rng.random(shape, np.float32)), volume(rng.integers(0, 3, shape, np.uint8))
    draw_overlay(
        tmp_path / "a.png",
        image=image,
        prediction=label_map,
        reference=label_map if has_reference else None,
        labels={"background": 0, "one": 1, "two": 2},
        title="a",
    )
    assert np.ptp(pixels(tmp_path / "a.png")) > 0


@pytest.mark.parametrize("value", [-1000, 1.7e6])
def test_a_constant_image_without_structures_can_be_drawn(tmp_path, value):
    image, empty = volume(np.full((9, 9, 9), value, np.float32)), volume(np.zeros((9, 9, 9), np.uint8))
    draw_overlay(tmp_path / "a.png", image=image, prediction=empty, reference=empty, labels={}, title="a")
    assert pixels(tmp_path / "a.png").size


def test_odd_names_and_many_labels_can_be_drawn(tmp_path):
    label_map = volume(np.arange(27, dtype=np.uint16).reshape(3, 3, 3))
    labels = {"_hidden": 1, "$x_1": 2, "Größe": 3} | {f"a rather long name {n}": n for n in range(4, 20)}
    draw_overlay(
        tmp_path / "a.png",
        image=label_map,
        prediction=label_map,
        reference=label_map,
        labels=labels,
        title="$" + "W" * 200,
    )
    assert pixels(tmp_path / "a.png").size


def test_a_label_without_name_is_drawn(tmp_path):
    case = volume(ball((30, 30, 30), (15, 15, 15), 8) * np.uint8(7))
    draw_overlay(tmp_path / "a.png", image=case, prediction=case, reference=None, labels={}, title="a")
    assert len(where(pixels(tmp_path / "a.png"), PALETTE[0])[0]) > 100


def test_the_same_case_gives_the_same_file(tmp_path):
    case = volume(ball((20, 20, 20), (9, 9, 9), 5))
    for name in ("a.png", "b.png"):
        draw_overlay(tmp_path / name, image=case, prediction=case, reference=case, labels={"x": 1}, title="a")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_picture_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ResourceError, match="not-writable"):
        draw_curves(tmp_path / "a.png", {}, "title")


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"training/loss": []},
        {"training/loss": [(1, 0.5)], "validation/dice/mean": [(1, 0.7)]},
        {"training/loss": [(1, 0.5), (2, float("nan")), (3, 0.2)], "learning_rate": [(1, 1e-3)]},
        {f"validation/dice/_${n}": [(epoch, n / 20) for epoch in range(50)] for n in range(20)},
    ],
)
def test_curves_of_anything_can_be_drawn(tmp_path, metrics):
    draw_curves(tmp_path / "curves.png", metrics, "hippocampus, $fold_0")
    assert np.ptp(pixels(tmp_path / "curves.png")) > 0


def test_losses_are_drawn_left_and_shares_right_of_every_task(tmp_path):
    line = [(epoch, 0.5) for epoch in range(50)]
    losses = ("training/loss", "fold1 training/adversarial_target")
    shares = ("validation/dice/mean", "fold1 validation/auc", "validation/ssim")
    for name in (*losses, *shares):
        draw_curves(tmp_path / "curves.png", {name: line}, "title")
        picture = pixels(tmp_path / "curves.png")
        columns = where(picture, PALETTE[-1])[1]
        assert (columns.mean() < picture.shape[1] / 2) == (name in losses), name
    draw_curves(tmp_path / "judged.png", {"training/judgement_source_real": line}, "title")
    picture = pixels(tmp_path / "judged.png")
    columns = where(picture, PALETTE[-1])[1] / picture.shape[1]  # no loss, and between both
    assert columns.min() > 1 / 3 and columns.max() < 2 / 3
    draw_curves(tmp_path / "seconds.png", {"training/epoch_seconds": line}, "title")
    assert not where(pixels(tmp_path / "seconds.png"), PALETTE[-1])[1].size


def test_no_dice_is_told_of_what_nobody_drew_and_ignored_voxels_do_not_count():
    reference = np.zeros((4, 4, 4), np.uint8)
    reference[0], reference[1] = 1, 9
    prediction = np.full_like(reference, 2)
    prediction[:2] = 1
    scene = compose_scene(
        volume(prediction.astype(np.float32)),
        {"Reference": volume(reference), "Prediction": volume(prediction)},
        [1, 2],
    )
    values = {"one": 1, "two": 2, "ignored": 9}
    texts = legend_texts(scene, values, unlabelled={2}, ignore_value=9)
    assert texts == ["one  1.000", "two (not labelled)", "ignored"]
