"""From what an enhancer gives to an image like the input: its grid, its unit, its stored type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transforms.enhancement import Scale
from transforms.resampling import BlockResampler, Shape

# A float32 sum of squares knows what it is made of to about 1e-7 of itself.
_SQUARE_ROUNDING = 1e-6


class ImageBuilder:
    """Images on a grid, from scaled values that arrive block by block.

    The result equals bringing the values of the whole volume linearly to the grid and undoing the scale
    there, however the volume was cut.

    Args:
        scales: Of each channel, undone by `value * deviation + mean`.
        deviates: Whether the spread of the values comes with them; see `add`.
        source_shape: `(h, w, d)` of the network's grid.
        affine: 4x4 voxel → world of the network's grid.
        shape: `(I, J, K)` of the grid of the result.
        target_affine: Its 4x4 voxel → world; its axes are those of `affine` up to order, direction and
            spacing.

    Attributes:
        images: Per channel `(I, J, K)` float32 in Fortran order, the order in which NIfTI stores them.
        deviations: Their standard deviations in the same unit; none if they do not come.
        overlap: Per axis of the network's grid, how many planes a block must share with the one before.
    """

    def __init__(
        self,
        scales: Sequence[Scale],
        deviates: bool,
        source_shape: Shape,
        affine: NDArray[np.float64],
        shape: Shape,
        target_affine: NDArray[np.float64],
    ) -> None:
        self._resampler = BlockResampler(source_shape, affine, shape, target_affine)
        self._scales = tuple(scales)
        self.overlap = self._resampler.overlap
        self.images = [np.zeros(shape, dtype=np.float32, order="F") for _ in scales]
        self.deviations = [np.zeros(shape, dtype=np.float32, order="F") for _ in scales if deviates]

    @property
    def num_bytes(self) -> int:
        """What the images and their deviations take."""
        return sum(array.nbytes for array in (*self.images, *self.deviations))

    def add(self, scores: Tensor, origin: Shape) -> None:
        """Takes a block of the network's grid.

        Args:
            scores: `(C, h, w, d)` float32, what was found; if it deviates `(2 C, h, w, d)`, with variances.
            origin: The block's first voxel.

        Raises:
            FloatingPointError: If they are not numbers.
        """
        num = len(self._scales)
        channels = [*scores[:num]]
        if self.deviations:
            # On the network's grid: resampled first, what differs between neighbours would count as well.
            channels += scores[num:].sqrt()
        targets = [*self.images, *self.deviations]
        for chunk, resampled in self._resampler.resample(channels, origin):
            for k, values in enumerate(resampled):
                targets[k][chunk] = self._undo(values, k).cpu().numpy()

    def _undo(self, values: Tensor, k: int) -> Tensor:
        """Values of the channel `k`, or behind all channels deviations, in the unit of the result."""
        num = len(self._scales)
        scale = self._scales[k % num]
        restored = values.mul(scale.deviation)
        if k < num:
            restored.add_(scale.mean)
        if not bool(restored.isfinite().all()):
            raise FloatingPointError("what the network gives is not numbers")
        return restored


def measure_spread(means: Tensor) -> Tensor:
    """Values and their variances, of means over all answers to one question.

    Args:
        means: `(3 C, …)` float32: of the answers, of their differences from one and the same shift, and of
            the squares of these. The smaller the differences, the finer the variances.

    Returns:
        `(2 C, …)`: the means of the answers, and their variances; 0 where it is but the squares' rounding.
    """
    values, differences, squares = means.chunk(3)
    variances = torch.addcmul(squares, differences, differences, value=-1)
    variances[variances < _SQUARE_ROUNDING * squares] = 0
    return torch.cat((values, variances))


def to_stored_type(values: NDArray[np.float32], dtype: np.dtype[Any]) -> tuple[NDArray[np.generic], int]:
    """Values in the type in which their image was stored: rounded and clipped if it holds whole numbers.

    Args:
        values: `(I, J, K)` finite numbers.
        dtype: Of the image; real numbers become float32.

    Returns:
        The array, in Fortran order, and how many voxels were clipped.
    """
    if dtype.kind not in "ui":
        return values, 0
    info = np.iinfo(dtype)
    low, high = float(info.min), float(info.max)
    if int(high) > info.max:  # of 64 bits, which a double cannot hold
        high = float(np.nextafter(high, 0))
    stored = np.empty(values.shape, dtype=dtype, order="F")
    num_clipped = 0
    for k in range(values.shape[2]):  # in double precision, which holds all integers of 32 bits: by slices
        rounded = np.rint(values[:, :, k].astype(np.float64))
        num_clipped += int(np.count_nonzero((rounded < low) | (rounded > high)))
        stored[:, :, k] = rounded.clip(low, high)
    return stored, num_clipped


def subtract(image: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.float32]:
    """`image - other` of `(I, J, K)` arrays of any real types, in Fortran order; nothing overflows."""
    difference = np.empty(image.shape, dtype=np.float32, order="F")
    largest = float(np.finfo(np.float32).max)
    for k in range(image.shape[2]):
        exact = np.subtract(image[:, :, k], other[:, :, k], dtype=np.float64)
        difference[:, :, k] = exact.clip(-largest, largest)
    return difference
