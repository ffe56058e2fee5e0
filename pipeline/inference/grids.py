"""Images on one another's grids."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.volume import Grid, Volume
from transforms.resampling import match_axes, resample


def on_grid(volume: Volume, grid: Grid) -> NDArray[np.generic]:
    """The voxels of a volume on a parallel grid: as they are if it is its own, else linearly in float32."""
    if volume.grid.is_close(grid):
        return volume.array
    stored = torch.from_numpy(np.asarray(volume.array, dtype=np.float32))
    resampled: NDArray[np.float32] = resample(stored, volume.grid.affine, grid.shape, grid.affine).numpy()
    return resampled


def labels_on_grid(volume: Volume, grid: Grid) -> NDArray[np.generic]:
    """The values of a label map on a parallel grid: each of the nearest voxel, whatever the distance."""
    if volume.grid.is_close(grid):
        return volume.array
    axes, positions = match_axes(volume.grid.affine, grid.shape, grid.affine)
    values = volume.array.transpose(axes)
    for axis, position in enumerate(positions):
        values = values.take(np.rint(position).clip(0, values.shape[axis] - 1).astype(np.intp), axis)
    return values


def in_axes_of(grid: Grid, shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Grid:
    """A grid of the voxels of another one, with order and direction of the axes of `grid`.

    Args:
        grid: The input's.
        shape: `(h, w, d)` of the network's grid.
        affine: Its 4x4 voxel → world; its axes are those of `grid` up to order, direction and spacing.
    """
    axes, positions = match_axes(affine, (2, 2, 2), grid.affine)
    turned = np.zeros((4, 4))
    turned[3, 3] = 1
    for k, (axis, (first, second)) in enumerate(zip(axes, positions, strict=True)):
        turned[axis, k] = 1 if second > first else -1
        turned[axis, 3] = 0 if second > first else shape[axis] - 1
    sizes = shape[axes[0]], shape[axes[1]], shape[axes[2]]
    return Grid(sizes, affine @ turned, sform_code=grid.sform_code or grid.qform_code or 1)
