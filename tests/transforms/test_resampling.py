"""A volume comes to a parallel grid as scipy would bring it there, and to nowhere it has not been."""

import itertools

import nibabel as nib
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy.ndimage import map_coordinates

from transforms.resampling import resample_within

ORIENTATIONS = [
    "".join(codes)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*order)
]
TILT = nib.eulerangles.euler2mat(0.1, -0.2, 0.3)


@settings(max_examples=40)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    target_shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 3)] * 3),
    shift=st.tuples(*[st.floats(-4, 4)] * 3),
    codes=st.sampled_from(ORIENTATIONS),
    seed=st.integers(0, 99),
)
def test_equals_trilinear_interpolation_inside_and_is_0_outside(
    shape, target_shape, spacing, shift, codes, seed
):
    volume = np.random.default_rng(seed).uniform(1, 2, shape).astype(np.float32)
    affine = nib.affines.from_matvec(TILT * (0.8, 1.1, 2.0), (3, -20, 7))
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    moved = affine @ nib.affines.from_matvec(np.diag(spacing), shift)
    target = moved @ inv_ornt_aff(turn, target_shape)
    turned_shape = tuple(target_shape[int(axis)] for axis in np.argsort(turn[:, 0]))
    found = resample_within(torch.from_numpy(volume), affine, turned_shape, target).numpy()

    indices = np.stack([*np.indices(turned_shape), np.ones(turned_shape)]).reshape(4, -1)
    source = (np.linalg.inv(affine) @ target @ indices)[:3]
    limits = np.array(shape)[:, None] - 1
    expected = map_coordinates(volume, np.clip(source, 0, limits), order=1)
    beyond = np.maximum(-source, source - limits).max(axis=0)
    expected[beyond > 0.5] = 0
    is_clear = np.abs(beyond - 0.5) > 2e-3
    assert found.dtype == np.float32
    # Positions within a thousandth of a voxel centre are taken for it.
    np.testing.assert_allclose(found.ravel()[is_clear], expected[is_clear], atol=4e-3)


def test_its_own_grid_gives_the_volume_back_to_the_bit():
    volume = torch.rand(4, 5, 1)
    affine = nib.affines.from_matvec(TILT * (0.8, 1.1, 2.0), (3, -20, 7))
    assert torch.equal(resample_within(volume, affine, (4, 5, 1), affine), volume)
