"""From the network's scores to label values on the patient's own grid.

Scores are logits, never activated: for classes the largest wins, for regions a positive logit means a
probability above one half.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

# A grid made by orienting and resampling has axes parallel to the image's own; what is left is rounding.
_AXIS_TOLERANCE = 1e-3
_VOXEL_TOLERANCE = 1e-3


def label_map_on_grid(
    scores: Tensor,
    affine: NDArray[np.float64],
    shape: tuple[int, int, int],
    target_affine: NDArray[np.float64],
    values: Sequence[int],
    *,
    is_regions: bool,
) -> NDArray[np.uint16]:
    """Resamples all scores linearly to a grid and decides every voxel there.

    One class is resampled at a time against a running winner, so full-size scores of all classes never
    exist together; the result equals resampling them all first.

    Args:
        scores: `(K, h, w, d)` logits on the network's grid; for classes, channel 0 is the background.
        affine: 4x4 voxel → world of `scores`.
        shape: `(I, J, K)` of the target grid.
        target_affine: 4x4 voxel → world of the target grid; its axes are those of `affine` up to order,
            direction and spacing.
        values: Label value written for each channel.
        is_regions: Whether channels are independent regions, outer to inner, instead of classes.

    Returns:
        `(I, J, K)` label values; in C order of the target's axes.
    """
    resample = _build_resampling(tuple(scores.shape[1:]), affine, shape, target_affine)
    result = torch.full(shape, values[0] if not is_regions else 0, dtype=torch.int32, device=scores.device)
    if is_regions:
        for channel, value in zip(scores, values, strict=True):
            result[resample(channel) > 0] = value
    else:
        best = resample(scores[0])
        for channel, value in zip(scores[1:], values[1:], strict=True):
            score = resample(channel)
            result.masked_fill_(score > best, value)
            # Not in place: without resampling `best` is the caller's own scores.
            best = torch.maximum(best, score)
    return result.cpu().numpy().astype(np.uint16)


def keep_largest_component(label_map: NDArray[np.uint16], values: Sequence[int]) -> NDArray[np.uint16]:
    """Sets all but the largest 26-connected component of the union of `values` to background."""
    mask = np.isin(label_map, values)
    components, num = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if num <= 1:
        return label_map
    sizes = np.bincount(components.ravel())[1:]
    return np.where(mask & (components != 1 + int(sizes.argmax())), np.uint16(0), label_map)


class _Resampling:
    """Linear interpolation of one channel along three axes, or plain indexing where the grids coincide."""

    def __init__(
        self, axes: tuple[int, int, int], positions: Sequence[NDArray[np.float64]], sizes: Sequence[int]
    ) -> None:
        self.axes = axes
        self.positions = positions
        self.sizes = sizes

    def __call__(self, channel: Tensor) -> Tensor:
        result = channel.float().permute(self.axes)
        # The axis that shrinks most goes first: the fewest voxels are then touched by the others.
        order = sorted(range(3), key=lambda axis: len(self.positions[axis]) / self.sizes[axis])
        for axis in order:
            result = _interpolate(result, axis, self.positions[axis])
        return result.contiguous()


def _build_resampling(
    source_shape: tuple[int, ...],
    affine: NDArray[np.float64],
    shape: tuple[int, int, int],
    target_affine: NDArray[np.float64],
) -> _Resampling:
    to_source = np.linalg.inv(affine) @ target_affine
    linear = to_source[:3, :3]
    axes = np.abs(linear / np.linalg.norm(linear, axis=0)).argmax(axis=0)
    aligned = np.zeros((3, 3))
    aligned[axes, range(3)] = linear[axes, range(3)]
    assert (
        sorted(axes) == [0, 1, 2] and np.abs(linear - aligned).max() < _AXIS_TOLERANCE * np.abs(linear).max()
    ), "the network's grid must be parallel to the image's"
    positions = [
        to_source[axes[k], 3] + linear[axes[k], k] * np.arange(shape[k], dtype=np.float64) for k in range(3)
    ]
    first, second, third = (int(axis) for axis in axes)
    return _Resampling((first, second, third), positions, [source_shape[axis] for axis in axes])


def _interpolate(volume: Tensor, axis: int, positions: NDArray[np.float64]) -> Tensor:
    size = volume.shape[axis]
    clamped = np.clip(positions, 0, size - 1)
    nearest = np.rint(clamped)
    if np.abs(clamped - nearest).max() < _VOXEL_TOLERANCE:
        if np.array_equal(nearest, np.arange(size)):
            return volume
        return volume.index_select(axis, torch.from_numpy(nearest.astype(np.int64)).to(volume.device))
    lower = np.minimum(np.floor(clamped), max(size - 2, 0)).astype(np.int64)
    weight = torch.from_numpy((clamped - lower).astype(np.float32)).to(volume.device)
    weight = weight.reshape([-1 if k == axis else 1 for k in range(3)])
    index = torch.from_numpy(lower).to(volume.device)
    upper = torch.from_numpy(np.minimum(lower + 1, size - 1)).to(volume.device)
    return torch.lerp(volume.index_select(axis, index), volume.index_select(axis, upper), weight)
