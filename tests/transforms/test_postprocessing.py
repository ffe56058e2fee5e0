"""Scores come back to the patient's grid exactly as if all of them had been resampled first."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.ndimage import map_coordinates

from transforms.postprocessing import (
    Decision,
    keep_largest_component,
    label_map_on_grid,
)
from transforms.preprocessing import Preprocessing, preprocess

ORIENTATIONS = [
    "".join(codes)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*order)
]


def resample_all_then_decide(scores, affine, shape, target_affine, values):
    indices = np.stack([*np.indices(shape), np.ones(shape)]).reshape(4, -1)
    source = (np.linalg.inv(affine) @ target_affine @ indices)[:3]
    limits = np.array(scores.shape[1:])[:, None] - 1
    source = np.clip(source, 0, limits)
    resampled = np.stack([map_coordinates(channel, source, order=1, mode="nearest") for channel in scores])
    top = np.sort(resampled, axis=0)
    is_clear = (top[-1] - top[-2] > 1e-4).reshape(shape)
    return np.asarray(values)[resampled.argmax(0)].reshape(shape), is_clear


@settings(max_examples=25)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.6, 4)] * 3),
    target=st.tuples(*[st.floats(0.6, 4)] * 3),
    codes=st.sampled_from(ORIENTATIONS),
    seed=st.integers(0, 99),
)
def test_equals_resampling_all_scores_first(shape, spacing, target, codes, seed):
    generator = np.random.default_rng(seed)
    stored = nib.Nifti1Image(np.zeros(shape, np.float32), np.diag([*spacing, 1]))
    stored = stored.as_reoriented(ornt_transform(io_orientation(stored.affine), axcodes2ornt(codes)))
    chain = Preprocessing(spacing=target)
    prepared = preprocess(chain, [np.asarray(stored.dataobj)], stored.affine)
    scores = generator.normal(size=(4, *prepared.image.shape[1:])).astype(np.float32)
    values = (0, 2, 5, 300)
    found = label_map_on_grid(
        torch.from_numpy(scores), prepared.affine, stored.shape, stored.affine, Decision(values)
    )
    expected, is_clear = resample_all_then_decide(
        scores, prepared.affine, stored.shape, stored.affine, values
    )
    assert np.array_equal(found[is_clear], expected[is_clear])


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_without_resampling_a_label_map_returns_unchanged(codes):
    label = np.random.default_rng(0).choice([0, 1, 4], (6, 5, 4)).astype(np.uint8)
    tilt = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.05) * [1, 2, 3], (4, -8, 2))
    stored = nib.Nifti1Image(label, tilt)
    stored = stored.as_reoriented(ornt_transform(io_orientation(tilt), axcodes2ornt(codes)))
    array = np.asarray(stored.dataobj)
    prepared = preprocess(Preprocessing(), [array], stored.affine, array)
    scores = torch.stack([(prepared.label == value).float() for value in (0, 1, 4)])
    found = label_map_on_grid(scores, prepared.affine, array.shape, stored.affine, Decision((0, 1, 4)))
    assert np.array_equal(found, array)


def test_inner_regions_overwrite_outer_ones():
    scores = torch.tensor([[1.0, 1.0, -1.0, 1.0], [-1.0, 1.0, -1.0, -1.0]]).reshape(2, 4, 1, 1)
    found = label_map_on_grid(scores, np.eye(4), (4, 1, 1), np.eye(4), Decision((1, 2), is_regions=True))
    assert found.ravel().tolist() == [1, 2, 0, 1]


def test_only_the_largest_component_stays():
    label_map = np.zeros((9, 5, 5), np.uint16)
    label_map[:4, 1:4, 1:4] = 1
    label_map[1, 2, 2] = 2  # another label of the same structure
    label_map[7, 2, 2] = 1
    label_map[8, 4, 4] = 3  # not part of the structure
    kept = keep_largest_component(label_map, (1, 2))
    assert kept[7, 2, 2] == 0 and kept[8, 4, 4] == 3
    assert np.array_equal(kept[:5], label_map[:5])


@pytest.mark.parametrize("num", [1, 3, 255, 256, 300])
@pytest.mark.parametrize("is_regions", [False, True])
def test_every_channel_is_written_with_its_own_value(num, is_regions):
    generator = np.random.default_rng(num)
    values = tuple(map(int, generator.permutation(2000)[:num]))
    scores = generator.normal(size=(num, 4, 5, 6)).astype(np.float32)
    found = label_map_on_grid(
        torch.from_numpy(scores), np.eye(4), (4, 5, 6), np.eye(4), Decision(values, is_regions)
    )
    expected = np.asarray(values)[scores.argmax(0)]
    if is_regions:
        expected = np.zeros((4, 5, 6), int)
        for value, region in zip(values, scores, strict=True):
            expected[region > 0] = value
    assert np.array_equal(found, expected)
