"""The box round a region, and the region as a channel, are the same whatever grid the image is stored on."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy import ndimage

from transforms.preprocessing import Preprocessing, preprocess
from transforms.region import crop_to_region, show_region

SHAPE = (12, 10, 8)


def scene(seed=0):
    """An image, a region in it and an affine that turns the axes and has a spacing along each."""
    random = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(random.normal(size=SHAPE), 1).astype(np.float32)
    region = np.zeros(SHAPE, dtype=bool)
    region[4:7, 3:6, 2:5] = random.random((3, 3, 3)) < 0.6
    region[4, 3, 2] = region[6, 5, 4] = True
    return image, region, np.array([[1.5, 0, 0, -7], [0, 2, 0, 3], [0, 0, 3, 11], [0, 0, 0, 1.0]])


def see(image, region, affine, margin=0.0, **settings):
    prepared = show_region(preprocess(Preprocessing(**settings), [image], affine, region))
    return crop_to_region(prepared, region, affine, margin)


@pytest.mark.parametrize("margin, first, last", [(0, (4, 3, 2), (7, 6, 5)), (3, (2, 1, 1), (9, 8, 6))])
def test_the_box_holds_the_region_and_the_margin(margin, first, last):
    image, region, affine = scene()
    whole = preprocess(Preprocessing(), [image], affine)
    seen = see(image, region, affine, margin)
    box = tuple(slice(*ends) for ends in zip(first, last, strict=True))
    assert torch.equal(seen.image[0], whole.image[0][box])
    assert np.array_equal(seen.image[1].numpy() == 1, region[box])
    corner = whole.affine @ [*first, 1]
    np.testing.assert_allclose(seen.affine[:, 3], corner)


def test_a_margin_that_ends_within_a_voxel_takes_all_of_it_in():
    image, region, affine = scene()
    assert see(image, region, affine, 1.6).image.shape[1:] == (7, 5, 5)  # voxels of 1.5, 2 and 3 mm
    assert see(image, region, affine, 1.5).image.shape[1:] == (5, 5, 5)


def test_rounding_takes_in_no_voxel_more():
    image, _, _ = scene()
    random = np.random.default_rng(1)
    for _ in range(20):
        affine = np.eye(4)
        turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
        affine[:3] = np.c_[turn * random.uniform(0.3, 3, 3), random.uniform(-500, 500, 3)]
        region = np.zeros(SHAPE, dtype=bool)
        region[tuple(slice(low, low + 3) for low in random.integers(0, 5, 3))] = True
        assert see(image, region, affine).image.shape[1:] == (3, 3, 3)


def test_the_box_ends_where_the_image_does():
    image, region, affine = scene()
    for margin in (12, 1000):
        seen = see(image, region, affine, margin)
        assert seen.image.shape[1:] == SHAPE and np.array_equal(seen.affine, affine)


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0), (1.0, 3.0, 4.0)])
def test_all_orientations_give_the_same_box_of_the_same_voxels(spacing):
    image, region, affine = scene()
    wanted = see(image, region, affine, 2.0, spacing=spacing)
    for axes, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        turn = np.array(list(zip(axes, flips, strict=True)))
        turned = [np.ascontiguousarray(apply_orientation(array, turn)) for array in (image, region)]
        found = see(*turned, affine @ inv_ornt_aff(turn, SHAPE), 2.0, spacing=spacing)
        assert torch.equal(found.image[1], wanted.image[1])
        torch.testing.assert_close(found.image, wanted.image, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-6)


def test_a_region_that_lies_elsewhere_is_seen_as_it_was():
    image, region, affine = scene()
    wanted = see(image, region, affine, 2.0)
    moved = [np.roll(array, (2, 1, 1), axis=(0, 1, 2)) for array in (image, region)]
    away = affine.copy()
    away[:3, 3] += 100
    found = see(*moved, away, 2.0)
    torch.testing.assert_close(found.image, wanted.image, rtol=0, atol=1e-5)
    expected = wanted.affine.copy()
    expected[:3, 3] += 100 + np.array([1.5, 2, 3]) * (2, 1, 1)
    np.testing.assert_allclose(found.affine, expected)


def test_a_region_that_vanishes_between_coarse_voxels_still_has_a_box():
    image, _, affine = scene()
    prepared = preprocess(Preprocessing(spacing=(7.0, 7.0, 7.0)), [image], affine)
    for place in np.ndindex(SHAPE):
        region = np.zeros(SHAPE, dtype=bool)
        region[place] = True
        seen = crop_to_region(prepared, region, affine, 0.0)
        assert min(seen.image.shape[1:]) >= 1 and max(seen.image.shape[1:]) <= 2
        centre = np.linalg.inv(seen.affine) @ affine @ [*place, 1]
        size = np.array(seen.image.shape[1:])
        assert (centre[:3] > -1).all() and (centre[:3] < size).all()  # the grid may end before the image
