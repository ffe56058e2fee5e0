"""What a classifier sees of the region that it looks at: a box round it, or the region beside the image.

MONAI's `CropForeground` finds its box on the grid that it crops. Here the box is found on the patient's grid,
where the region is known exactly: resampled to coarser voxels, a small organ can vanish.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray

from transforms.preprocessing import Prepared

# A box that ends where a voxel does shall not take in the next one by rounding.
_VOXEL_TOLERANCE = 1e-3


def show_region(prepared: Prepared) -> Prepared:
    """Makes the label map a channel behind those of the image: 1 where it is not 0, else 0."""
    assert prepared.label is not None, "there is a region"
    mask = (prepared.label != 0).to(prepared.image.dtype)
    return Prepared(torch.cat([prepared.image, mask[None]]), prepared.affine)


def crop_to_region(
    prepared: Prepared, region: NDArray[np.bool_], affine: NDArray[np.float64], margin: float
) -> Prepared:
    """Cuts out the smallest box of voxels that holds the region and a margin round it.

    Nothing is made up: the box ends where the image does.

    Args:
        prepared: An image, its axes parallel to those of `affine` up to order and direction.
        region: `(I, J, K)` on the patient's grid, true somewhere.
        affine: 4x4 voxel of `region` → world, RAS millimetres.
        margin: Millimetres on every side.
    """
    to_image = np.linalg.inv(prepared.affine) @ affine
    corners = np.array(list(itertools.product(*_bounds(region, affine, margin))))
    placed = corners @ to_image[:3, :3].T + to_image[:3, 3]
    # A voxel reaches half its size to either side of its centre.
    first = np.floor(placed.min(axis=0) + 0.5 + _VOXEL_TOLERANCE).astype(int)
    stop = np.ceil(placed.max(axis=0) + 0.5 - _VOXEL_TOLERANCE).astype(int)
    first = np.maximum(first, 0)
    moved = prepared.affine.copy()
    moved[:3, 3] += prepared.affine[:3, :3] @ first
    box = tuple(slice(int(low), int(high)) for low, high in zip(first, stop, strict=True))
    return Prepared(prepared.image[:, *box].contiguous(), moved)


def _bounds(
    region: NDArray[np.bool_], affine: NDArray[np.float64], margin: float
) -> list[tuple[float, float]]:
    """Where the region with its margin begins and ends along each axis of its grid, in voxels."""
    bounds = []
    for axis, spacing in enumerate(np.linalg.norm(affine[:3, :3], axis=0)):
        others = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(region.any(axis=others))
        reach = 0.5 + margin / float(spacing)
        bounds.append((float(occupied[0]) - reach, float(occupied[-1]) + reach))
    return bounds
