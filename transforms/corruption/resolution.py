"""Detail that is lost: blur, and slices that are too thick."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.networks.layers import separable_filtering
from numpy.typing import NDArray
from scipy.special import ive
from torch import Tensor

from transforms.corruption.contract import require, require_image

_FWHM_PER_SIGMA = math.sqrt(8 * math.log(2))


@dataclass(frozen=True, slots=True)
class Blur:
    """A Gaussian of the same width in millimetres along every axis.

    Its weights are those of the discrete Gaussian `exp(-σ²) Iₖ(σ²)`, `σ` in voxels (Lindeberg, *Scale-space
    for discrete signals*, PAMI 1990), which has the variance `σ²` however small that is: a sampled Gaussian
    narrower than a voxel hardly blurs at all. The edge goes on outside; MONAI's `GaussianSmooth` takes
    zeros there, which darkens the rim, so only the convolution is MONAI's.

    Attributes:
        fwhm: Full width at half maximum in mm, 2.355 sigma; 0 leaves the image as it is.
    """

    fwhm: float

    def __post_init__(self) -> None:
        require(
            0 <= self.fwhm < math.inf,
            f"The width of a blur has to be 0 mm or more and finite; it is {self.fwhm:g}.",
        )

    def __call__(self, image: Tensor, spacing: Sequence[float], seed: int) -> Tensor:
        """See `Corruption`; nothing is random."""
        require_image(image, spacing)
        if self.fwhm == 0:
            return image.clone()
        kernels = [_build_kernel(self.fwhm / _FWHM_PER_SIGMA / side) for side in spacing]
        blurred: Tensor = separable_filtering(image[None], kernels, mode="replicate")[0]
        return blurred


@dataclass(frozen=True, slots=True)
class ThickSlices:
    """Slices `factor` times as thick: the mean of as many neighbours, with as many times fewer slices.

    A box is the profile of a perfect slice; a scanner's has softer edges, and may leave gaps. Slices at the
    end that do not make up a whole thick one are left out. To compare with the truth, resample to its grid
    from that of `affine_after`.

    Attributes:
        factor: How many slices become one; 1 leaves the image as it is.
        axis: The array axis across the slices, 0, 1 or 2.
    """

    factor: int
    axis: int = 2

    def __post_init__(self) -> None:
        require(
            isinstance(self.factor, int) and self.factor >= 1,
            f"Slices are averaged over a whole number of them, 1 or more; given is {self.factor}.",
        )
        require(self.axis in {0, 1, 2}, f"The axis across slices is 0, 1 or 2; given is {self.axis}.")

    def __call__(self, image: Tensor, spacing: Sequence[float], seed: int) -> Tensor:
        """See `Corruption`; nothing is random. The result has `size // factor` voxels along the axis."""
        require_image(image, spacing)
        axis = self.axis + 1
        require(
            axis < image.ndim,
            f"An image of the shape {tuple(image.shape)} has no axis {self.axis} to be coarser along.",
        )
        count = image.shape[axis] // self.factor
        require(
            count >= 1,
            f"{image.shape[axis]} slices are too few to make one of {self.factor}; take a smaller factor.",
        )
        stacks: Tensor = image.narrow(axis, 0, count * self.factor).unflatten(axis, (count, self.factor))
        return stacks.mean(axis + 1)

    def affine_after(self, affine: NDArray[np.float64]) -> NDArray[np.float64]:
        """The 4x4 voxel → world of the result, for that of the image.

        The centre of a thick slice is the mean of the centres that went into it.
        """
        # A coarse index c stands for the fine index factor * c + (factor - 1) / 2.
        to_fine = np.eye(4)
        to_fine[self.axis, self.axis] = self.factor
        to_fine[self.axis, 3] = (self.factor - 1) / 2
        return affine @ to_fine


def _build_kernel(sigma: float) -> Tensor:
    """Weights of the discrete Gaussian of `sigma` voxels; what is left out at its ends is below 1e-4."""
    reach = math.ceil(4 * sigma) + 1
    weights = ive(np.abs(np.arange(-reach, reach + 1)), sigma**2)
    return torch.from_numpy(weights / weights.sum()).float()
