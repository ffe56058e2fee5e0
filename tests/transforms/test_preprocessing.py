"""Whatever way an image is stored, the network sees the same voxels, and their geometry is known."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import NormalizeIntensity
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from transforms.preprocessing import IntensityStatistics, Preprocessing, preprocess

ORIENTATIONS = [
    "".join(codes)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*order)
]


def random_case(shape=(9, 7, 5)):
    generator = np.random.default_rng(0)
    affine = np.array([[1.0, 0, 0, -3], [0, 2.0, 0, 5], [0, 0, 3.0, 1], [0, 0, 0, 1]])
    return generator.normal(40, 9, shape).astype(np.float32), affine


def reorient(array, affine, codes):
    transform = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    image = nib.Nifti1Image(array, affine).as_reoriented(transform)
    assert np.allclose(image.affine, affine @ inv_ornt_aff(transform, array.shape))
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_stored_orientation_changes_nothing(codes):
    array, affine = random_case()
    expected = preprocess(Preprocessing(), [array], affine, (array > 40).astype(np.uint8))
    stored, stored_affine = reorient(array, affine, codes)
    found = preprocess(Preprocessing(), [stored], stored_affine, (stored > 40).astype(np.uint8))
    assert np.allclose(found.affine, expected.affine)
    assert np.array_equal(found.image, expected.image)
    assert np.array_equal(found.label, expected.label)


def test_resampled_voxels_lie_where_the_affine_says():
    _, affine = random_case()
    shape = (9, 7, 5)
    world = np.einsum("ij,jxyz->ixyz", affine[:3], np.stack([*np.indices(shape), np.ones(shape)]))
    settings = Preprocessing(spacing=(1.5, 1.0, 2.0), normalisation="window", window=(-100, 100))
    prepared = preprocess(settings, list(world.astype(np.float32)), affine)
    assert np.allclose(np.linalg.norm(prepared.affine[:3, :3], axis=0), (1.5, 1.0, 2.0))
    indices = np.indices(prepared.image.shape[1:])
    expected = np.einsum("ij,jxyz->ixyz", prepared.affine[:3], np.stack([*indices, np.ones_like(indices[0])]))
    inside = [(expected[k] >= world[k].min()) & (expected[k] <= world[k].max()) for k in range(3)]
    found = prepared.image.numpy() * 100  # the window maps [-100, 100] to [-1, 1]
    for k in range(3):
        assert np.allclose(found[k][np.all(inside, axis=0)], expected[k][np.all(inside, axis=0)], atol=1e-3)


def test_label_values_survive_resampling_exactly():
    array, affine = random_case()
    label = np.random.default_rng(1).choice([0, 7, 300, 65535], array.shape).astype(np.uint16)
    prepared = preprocess(Preprocessing(spacing=(0.7, 0.7, 0.7)), [array], affine, label)
    assert set(prepared.label.unique().tolist()) == {0, 7, 300, 65535}


def test_zscore_is_per_channel():
    array, affine = random_case()
    prepared = preprocess(Preprocessing(), [array, 1e6 * array - 4], affine)
    assert np.allclose(prepared.image.mean(dim=(1, 2, 3)), 0, atol=1e-4)
    assert np.allclose(prepared.image.std(dim=(1, 2, 3), correction=0), 1, atol=1e-4)


def test_zscore_is_monais_to_the_bit():
    array, affine = random_case((40, 31, 22))
    prepared = preprocess(Preprocessing(), [array, 100 - array**2], affine)
    stacked = torch.from_numpy(np.stack([array, 100 - array**2]))
    assert torch.equal(prepared.image, NormalizeIntensity(channel_wise=True)(stacked).as_tensor())


def test_constant_image_stays_finite():
    _, affine = random_case()
    prepared = preprocess(Preprocessing(), [np.full((9, 7, 5), 3.0, np.float32)], affine)
    assert prepared.image.isfinite().all()


def test_window_clips():
    _, affine = random_case()
    array = np.linspace(-1000, 1000, 9 * 7 * 5, dtype=np.float32).reshape(9, 7, 5)
    prepared = preprocess(Preprocessing(normalisation="window", window=(-160, 240)), [array], affine)
    assert prepared.image.min() == -1 and prepared.image.max() == 1


def test_dataset_statistics_follow_their_definition():
    array, affine = random_case()
    known = IntensityStatistics(low=30, high=50, mean=41, deviation=4)
    prepared = preprocess(Preprocessing(normalisation="dataset", statistics=(known,)), [array], affine)
    assert np.allclose(prepared.image[0], (array.clip(30, 50) - 41) / 4, atol=1e-5)
