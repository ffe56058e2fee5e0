"""What a page carries of a case lies where it lay, and says of each voxel what is true of it."""

import base64
import gzip

import nibabel as nib
import numpy as np
import pytest

from pipeline.report.content import View
from pipeline.report.cutouts import ADDED, CONFUSED, MISSED, cut_out
from pipeline.volume import Grid, Volume

TILTED = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.4) @ np.diag([-0.8, 1.2, 2.5]), (70.0, -40.0, 12.0)
)


def view(affine=TILTED, image=True, unlabelled=(), ignore=None, **maps):
    grid = Grid(next(iter(maps.values())).shape, affine)
    volumes = {name.capitalize(): Volume(array, grid) for name, array in maps.items()}
    rng = np.random.default_rng(0)
    values = Volume(rng.normal(40, 200, grid.shape).astype(np.float32), grid) if image else None
    return View("a", "worst", volumes, values, {"x": 1, "y": 7}, ignore, frozenset(unlabelled), None)


def decoded(cutout):
    return {
        name: nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))
        for name, text in cutout.encode().items()
    }


@pytest.mark.parametrize("voxel", [(70, 11, 3), (0, 0, 0), (89, 49, 29)])
def test_one_marked_voxel_keeps_its_world_coordinates(voxel):
    mark = np.zeros((90, 50, 30), np.uint8)
    mark[voxel] = 7
    cutout = cut_out(view(prediction=mark), 10_000_000)
    world = nib.affines.apply_affine(TILTED, voxel)
    assert np.prod(cutout.grid.shape) < mark.size
    assert np.allclose(cutout.focus, world)
    found = decoded(cutout)
    (index,) = np.argwhere(np.asarray(found["prediction"].dataobj))
    assert np.allclose(nib.affines.apply_affine(found["prediction"].affine, index), world, atol=1e-4)
    assert found["prediction"].dataobj[tuple(index)] == 2  # its place in the legend
    assert tuple(np.add(cutout.first, np.multiply(cutout.steps, index))) == voxel


def test_a_large_volume_shows_true_voxels_at_their_places():
    shape = (120, 100, 40)
    body = np.ones(shape, np.uint8)
    case = view(prediction=body)
    cutout = cut_out(case, 20_000)
    assert np.prod(cutout.grid.shape) <= 20_000 and cutout.steps[0] > cutout.steps[2]
    image, rng = decoded(cutout)["image"], np.random.default_rng(1)
    spread = np.ptp(case.image.array)
    for index in rng.integers(0, image.shape, (20, 3)):
        original = np.add(cutout.first, np.multiply(cutout.steps, index))
        here, there = (nib.affines.apply_affine(a, i) for a, i in ((image.affine, index), (TILTED, original)))
        assert np.allclose(here, there, atol=1e-4)
        assert image.dataobj[tuple(index)] == pytest.approx(
            case.image.array[tuple(original)], abs=float(spread) / 2**15
        )


def test_whole_numbers_stay_what_they_are():
    grid = Grid((4, 4, 4), np.eye(4))
    numbers = np.arange(-32, 32, dtype=np.int32).reshape(4, 4, 4)
    mask = np.ones((4, 4, 4), np.uint8)
    case = View(
        "a", "", {"Prediction": Volume(mask, grid)}, Volume(numbers, grid), {"x": 1}, None, frozenset(), None
    )
    assert np.array_equal(np.asarray(decoded(cut_out(case, 1000))["image"].dataobj), numbers)


def test_a_difference_names_what_differs_and_where_nobody_knows_nothing():
    reference, prediction = np.zeros((2, 1, 8, 1), np.uint8)
    reference[0, :, 0], prediction[0, :, 0] = (1, 1, 0, 1, 9, 9, 0, 0), (1, 0, 1, 7, 1, 0, 7, 0)
    case = view(np.eye(4), image=False, unlabelled=(7,), ignore=9, reference=reference, prediction=prediction)
    difference = cut_out(case, 1000).layers["difference"][0, :, 0]
    assert difference.tolist() == [0, MISSED, ADDED, 0, 0, 0, 0, 0]  # 7 was drawn by nobody
    judged = view(np.eye(4), image=False, ignore=9, reference=reference, prediction=prediction)
    assert cut_out(judged, 1000).layers["difference"][0, :, 0].tolist() == [
        0, MISSED, ADDED, CONFUSED, 0, 0, ADDED, 0,
    ]  # fmt: skip


def test_the_focus_is_amid_the_largest_difference():
    reference = np.zeros((40, 20, 20), np.uint8)
    prediction = reference.copy()
    prediction[3, 3, 3], prediction[20:31, 5:10, 5:10] = 1, 1
    assert cut_out(view(np.eye(4), reference=reference, prediction=prediction), 10**6).focus == (25, 7, 7)


def test_nothing_predicted_shows_the_whole():
    empty = np.zeros((5, 6, 7), np.uint8)
    assert cut_out(view(reference=empty, prediction=empty), 1000).grid.shape == (5, 6, 7)
