"""A whole image at one size: where its voxels lie afterwards, and what it shows."""

import nibabel as nib
import numpy as np
import pytest
import torch

from transforms.classification import fit_to_size
from transforms.preprocessing import Prepared


def build(shape, spacing=(1.5, 1, 3)):
    tilt = nib.eulerangles.euler2mat(0.1, -0.2, 0.3) * spacing
    affine = nib.affines.from_matvec(tilt, (4, -7, 11))
    # Each channel holds one world coordinate, so that any voxel tells where it lies.
    world = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return Prepared(torch.from_numpy(np.moveaxis(world, -1, 0).astype(np.float32)), affine)


@pytest.mark.parametrize("fit", ["resize", "crop"])
@pytest.mark.parametrize("size", [(10, 12, 8), (7, 9, 5), (20, 24, 16)])
def test_voxels_stay_where_they_are_in_the_patient(fit, size):
    prepared = build((10, 12, 8))
    fitted = fit_to_size(prepared, size, fit)
    assert fitted.image.shape == (3, *size)
    world = nib.affines.apply_affine(fitted.affine, np.moveaxis(np.indices(size), 0, -1))
    told = np.moveaxis(fitted.image.numpy(), 0, -1)
    inside = np.all(np.abs(told) > 0, axis=-1) if fit == "crop" else np.zeros(size, bool)
    if fit == "resize":
        inside[tuple(slice(n // 3, n - n // 3) for n in size)] = True  # away from the edge
    assert inside.any()
    np.testing.assert_allclose(told[inside], world[inside], atol=0.05)


def test_an_image_of_the_right_size_is_left_alone():
    prepared = build((6, 5, 1))
    assert fit_to_size(prepared, (6, 5), "resize") is prepared


def test_two_axes_take_one_slice():
    with pytest.raises(ValueError, match="one slice"):
        fit_to_size(build((6, 5, 2)), (6, 5), "resize")
