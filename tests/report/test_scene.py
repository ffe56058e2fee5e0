"""What is shown of a case is right whatever way its voxels are stored."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from pipeline.report.scene import MARGIN_MM, PLANES, compose_scene
from pipeline.volume import Grid, Volume

SPACING = (0.8, 1.5, 3.0)
ORIENTATIONS = ["".join(codes) for order in permutations(("RL", "AP", "SI")) for codes in product(*order)]


def volume(array, affine=None):
    return Volume(array, Grid(array.shape, np.diag([*SPACING, 1.0]) if affine is None else affine))


def stored_as(ras, codes):
    """The same patient, with the array axes turned to `codes`."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    affine = ras.grid.affine @ inv_ornt_aff(turn, ras.array.shape)
    return volume(nib.apply_orientation(ras.array, turn), affine)


@pytest.fixture
def case():
    """Intensities that differ everywhere, and one off-centre box."""
    image = np.arange(20 * 16 * 12, dtype=np.float32).reshape(20, 16, 12)
    label_map = np.zeros(image.shape, dtype=np.uint8)
    label_map[3:6, 10:13, 2:5] = 1
    return volume(image), volume(label_map)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_storage_order_shows_the_same(case, codes):
    image, label_map = case
    expected = compose_scene(image, {"Prediction": label_map}, [1])
    turned = stored_as(image, codes)
    assert turned.grid.orientation == codes
    scene = compose_scene(turned, {"Prediction": stored_as(label_map, codes)}, [1])
    np.testing.assert_array_equal(scene.image, expected.image)
    np.testing.assert_array_equal(scene.maps["Prediction"], expected.maps["Prediction"])
    assert scene.spacing == pytest.approx(SPACING)
    assert scene.cut == expected.cut
    assert np.allclose(scene.view, expected.view)


def test_an_oblique_image_goes_to_its_nearest_axes(case):
    image, label_map = case
    angle = np.deg2rad(20)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    oblique = volume(image.array, rotation @ image.grid.affine)
    scene = compose_scene(oblique, {"Prediction": label_map}, [1])
    np.testing.assert_array_equal(scene.image, image.array)
    assert scene.spacing == pytest.approx(SPACING)


def test_the_cut_goes_through_the_structure(case):
    image, label_map = case
    scene = compose_scene(image, {"Prediction": label_map}, [1])
    assert scene.cut == (4, 11, 3)
    for plane in PLANES:
        assert scene.slice(scene.maps["Prediction"], plane).sum() == 9


def test_the_cut_goes_through_one_of_two_sides_and_not_between_them():
    label_map = np.zeros((30, 10, 10), dtype=np.uint8)
    label_map[2:7, 3:6, 3:6] = label_map[22:27, 3:6, 3:6] = 1
    scene = compose_scene(volume(label_map), {"Prediction": volume(label_map)}, [1])
    assert label_map[scene.cut] == 1


def test_a_large_structure_does_not_hide_a_small_one():
    label_map = np.zeros((20, 20, 40), dtype=np.uint8)
    label_map[:, :, 2:12] = 1
    label_map[9:11, 9:11, 30] = 2
    scene = compose_scene(volume(label_map), {"Prediction": volume(label_map)}, [1, 2])
    assert scene.cut[2] == 30


def test_the_view_shows_what_only_the_prediction_has():
    image = volume(np.zeros((200, 100, 60), dtype=np.uint8))
    reference, prediction = np.zeros((2, 200, 100, 60), dtype=np.uint8)
    reference[50:60, 50:60, 30:35] = 1
    prediction[150, 55, 32] = 1
    scene = compose_scene(image, {"Reference": volume(reference), "Prediction": volume(prediction)}, [1])
    first, last = scene.view[0]
    assert first == 0.0 or first <= 50 * SPACING[0] - MARGIN_MM
    assert last >= 151 * SPACING[0]
    alone = compose_scene(image, {"Reference": volume(reference)}, [1])
    assert alone.view[0] == pytest.approx((50 * SPACING[0] - MARGIN_MM, 60 * SPACING[0] + MARGIN_MM))


def test_without_structures_the_whole_middle_is_shown(case):
    image, label_map = case
    scene = compose_scene(image, {"Prediction": label_map}, [])
    assert scene.cut == (10, 8, 6)
    assert [scene.extent(axis) for axis in range(3)] == pytest.approx([20 * 0.8, 16 * 1.5, 12 * 3.0])


def test_one_slice_has_one_plane():
    for axis, name in ((0, "Sagittal"), (1, "Coronal"), (2, "Axial")):
        slab = volume(np.ones(np.insert([7, 8], axis, 1), dtype=np.uint8))
        assert [plane.name for plane in compose_scene(slab, {"Prediction": slab}, [1]).planes] == [name]


@pytest.mark.parametrize(
    ("values", "window"),
    [
        ([7] * 8, (6.5, 7.5)),
        ([0] * 7 + [5], (0.0, 5.0)),
        ([0] * 500 + list(range(1, 102)), (2.0, 100.0)),
    ],
)
def test_grey_values_have_a_width_and_forget_padding(values, window):
    image = volume(np.array(values, dtype=np.int16).reshape(-1, 1, 1))
    assert compose_scene(image, {}, []).window == pytest.approx(window)


def test_pictures_beside_each_other_show_the_same_slices(case):
    image, label_map = case
    other = volume(np.roll(label_map.array, (7, -8, 5), axis=(0, 1, 2)))
    first = compose_scene(image, {"Prediction": label_map}, [1], beside=[other])
    second = compose_scene(image, {"Prediction": other}, [1], beside=[label_map])
    assert (first.cut, first.view) == (second.cut, second.view)
    assert first.cut != compose_scene(image, {"Prediction": other}, [1]).cut
