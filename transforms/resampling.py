"""Linear resampling between grids whose axes are parallel, one axis at a time.

A grid made by orienting, resampling, resizing and cropping an image has axes parallel to the image's own, up
to order, direction and spacing. Trilinear interpolation is then a linear one along each axis in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# What is left between parallel grids is rounding.
_AXIS_TOLERANCE = 1e-3
_VOXEL_TOLERANCE = 1e-3

CHUNK_VOXELS = 2**17
"""Voxels worked on together: few enough for the processor's cache, many enough for its vector units."""

Shape = tuple[int, int, int]
Slices = tuple[slice, slice, slice]


class BlockResampler:
    """Brings volumes that arrive block by block to a grid whose axes are parallel to theirs.

    The result equals resampling the whole volumes linearly, however they were cut.

    Args:
        source_shape: `(h, w, d)` of the volumes.
        affine: 4x4 voxel → world of the volumes.
        shape: `(I, J, K)` of the target grid.
        target_affine: 4x4 voxel → world of the target grid; its axes are those of `affine` up to order,
            direction and spacing.

    Attributes:
        overlap: Per axis of the volumes, how many planes a block must share with the one before.
    """

    def __init__(
        self,
        source_shape: Shape,
        affine: NDArray[np.float64],
        shape: Shape,
        target_affine: NDArray[np.float64],
    ) -> None:
        self._axes, positions = match_axes(affine, shape, target_affine)
        sizes = [source_shape[axis] for axis in self._axes]
        self._lines = [Line.at(p, size) for p, size in zip(positions, sizes, strict=True)]
        # The axis that shrinks most goes first: the fewest voxels are then touched by the others.
        self._order = sorted(range(3), key=lambda axis: shape[axis] / sizes[axis])
        shared = {self._axes[k]: int(self._lines[k].is_interpolated) for k in range(3)}
        self.overlap = shared[0], shared[1], shared[2]

    @property
    def is_resampling(self) -> bool:
        """Whether a target voxel depends on several source voxels."""
        return any(self.overlap)

    def resample(
        self, channels: Sequence[Tensor], origin: Shape
    ) -> Iterator[tuple[Slices, Iterator[Tensor]]]:
        """Every target voxel that depends on nothing outside of a block, chunk by chunk.

        Args:
            channels: Each `(h, w, d)` float32, the block of one volume.
            origin: The block's first voxel.

        Yields:
            A place on the target grid, and one channel after the other there, each computed when it is taken.
        """
        # In memory order, so that a chunk of the block is read in one go.
        block = [channel.permute(self._axes) for channel in channels]
        starts = [origin[axis] for axis in self._axes]
        ready = [
            line.within(start, start + size)
            for line, start, size in zip(self._lines, starts, block[0].shape, strict=True)
        ]
        # Read along the source's last axis and written along the target's first, it is cut along another one.
        cut = next(axis for axis in (self._axes.index(0), self._axes.index(1)) if axis != 0)
        for chunk in _cut(ready, cut):
            yield chunk, (self._resample(channel, starts, chunk) for channel in block)

    def _resample(self, channel: Tensor, starts: Sequence[int], chunk: Slices) -> Tensor:
        for axis in self._order:
            channel = self._lines[axis].resample(channel, axis, starts[axis], chunk[axis])
        return channel


def resample(
    volume: Tensor, affine: NDArray[np.float64], shape: Shape, target_affine: NDArray[np.float64]
) -> Tensor:
    """Resamples a volume linearly to a grid; beyond its outermost voxels their value holds.

    Args:
        volume: `(h, w, d)` float32.
        affine: 4x4 voxel → world of `volume`.
        shape: `(I, J, K)` of the target grid.
        target_affine: Its 4x4 voxel → world; its axes are those of `affine` up to order, direction and
            spacing.

    Returns:
        `(I, J, K)` float32.
    """
    height, width, depth = volume.shape
    resampled = volume.new_empty(shape)
    resampler = BlockResampler((height, width, depth), affine, shape, target_affine)
    for chunk, channels in resampler.resample([volume], (0, 0, 0)):
        resampled[chunk] = next(channels)
    return resampled


def resample_within(
    volume: Tensor, affine: NDArray[np.float64], shape: Shape, target_affine: NDArray[np.float64]
) -> Tensor:
    """Resamples a volume linearly to a grid; 0 outside of the box of its voxels.

    The box ends half a voxel beyond the outermost voxel centres, between which the outermost value holds.

    Args:
        volume: `(h, w, d)` float32.
        affine: 4x4 voxel → world of `volume`.
        shape: `(I, J, K)` of the target grid.
        target_affine: Its 4x4 voxel → world; its axes are those of `affine` up to order, direction and
            spacing.

    Returns:
        `(I, J, K)` float32.
    """
    axes, positions = match_axes(affine, shape, target_affine)
    resampled = volume.permute(axes)
    sizes = resampled.shape
    for axis, (position, size) in enumerate(zip(positions, sizes, strict=True)):
        line = Line.at(position, size)
        resampled = line.resample(resampled, axis, 0, slice(None))
        is_inside = (position > -0.5 - _VOXEL_TOLERANCE) & (position < size - 0.5 + _VOXEL_TOLERANCE)
        inside = torch.from_numpy(is_inside).to(resampled)
        resampled = resampled * inside.reshape([-1 if k == axis else 1 for k in range(3)])
    return resampled


@dataclass(frozen=True, slots=True)
class Line:
    """Where the voxels of one target axis lie on the source axis, monotonically.

    Attributes:
        lower: `(n,)` int64 source voxel at or before each target voxel.
        upper: The one behind; equal to `lower` where nothing is interpolated.
        weight: `(n,)` float32 share of the upper one; None if no voxel of the axis lies between two.
    """

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    weight: NDArray[np.float32] | None

    @classmethod
    def at(cls, positions: NDArray[np.float64], size: int) -> Line:
        """The line of source positions in voxels; beyond the ends of `size` voxels the last one counts."""
        clamped = np.clip(positions, 0, size - 1)
        nearest = np.rint(clamped)
        if np.abs(clamped - nearest).max() < _VOXEL_TOLERANCE:
            index = nearest.astype(np.int64)
            return cls(index, index, None)
        lower = np.minimum(np.floor(clamped), max(size - 2, 0)).astype(np.int64)
        return cls(lower, np.minimum(lower + 1, size - 1), (clamped - lower).astype(np.float32))

    @property
    def is_interpolated(self) -> bool:
        """Whether any target voxel depends on two source voxels."""
        return self.weight is not None

    def within(self, first: int, stop: int) -> slice:
        """The target voxels that depend on source voxels `first` to `stop` alone."""
        inside = np.flatnonzero((self.lower >= first) & (self.upper < stop))
        return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)

    def resample(self, volume: Tensor, axis: int, start: int, target: slice) -> Tensor:
        """Gives `volume`, whose first source voxel is `start`, the voxels `target` along `axis`."""
        lower = _take(volume, axis, self.lower[target] - start)
        if self.weight is None:
            return lower
        upper = _take(volume, axis, self.upper[target] - start)
        weight = torch.from_numpy(self.weight[target]).to(volume.device)
        return torch.lerp(lower, upper, weight.reshape([-1 if k == axis else 1 for k in range(3)]))


def match_axes(
    affine: NDArray[np.float64], shape: Shape, target_affine: NDArray[np.float64]
) -> tuple[Shape, list[NDArray[np.float64]]]:
    """The source axis of each target axis, and where its voxels lie on it, in source voxels."""
    assert are_parallel(affine, target_affine), "the network's grid must be parallel to the image's"
    to_source = np.linalg.inv(affine) @ target_affine
    linear, axes = to_source[:3, :3], _nearest_axes(to_source)
    positions = [
        to_source[axes[k], 3] + linear[axes[k], k] * np.arange(shape[k], dtype=np.float64) for k in range(3)
    ]
    return (int(axes[0]), int(axes[1]), int(axes[2])), positions


def are_parallel(affine: NDArray[np.float64], target_affine: NDArray[np.float64]) -> bool:
    """Whether two 4x4 voxel → world have the same axes up to order, direction and spacing."""
    to_source = np.linalg.inv(affine) @ target_affine
    linear, axes = to_source[:3, :3], _nearest_axes(to_source)
    aligned = np.zeros((3, 3))
    aligned[axes, range(3)] = linear[axes, range(3)]
    is_aligned = np.abs(linear - aligned).max() < _AXIS_TOLERANCE * np.abs(linear).max()
    return sorted(axes) == [0, 1, 2] and bool(is_aligned)


def _nearest_axes(to_source: NDArray[np.float64]) -> NDArray[np.intp]:
    linear = to_source[:3, :3]
    axes: NDArray[np.intp] = np.abs(linear / np.linalg.norm(linear, axis=0)).argmax(axis=0)
    return axes


def _take(volume: Tensor, axis: int, index: NDArray[np.int64]) -> Tensor:
    if len(index) and np.array_equal(index, np.arange(index[0], index[0] + len(index))):
        return volume.narrow(axis, int(index[0]), len(index))
    return volume.index_select(axis, torch.from_numpy(index).to(volume.device))


def _cut(ready: Sequence[slice], axis: int) -> Iterator[Slices]:
    """Cuts a box of target voxels into chunks along one axis."""
    sizes = [part.stop - part.start for part in ready]
    if not all(sizes):
        return
    step = max(1, CHUNK_VOXELS * sizes[axis] // (sizes[0] * sizes[1] * sizes[2]))
    for start in range(ready[axis].start, ready[axis].stop, step):
        chunk = [*ready]
        chunk[axis] = slice(start, min(start + step, ready[axis].stop))
        yield chunk[0], chunk[1], chunk[2]
