"""The chain of an enhancer: intensities scaled so that it can be undone, and slices with their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from transforms.preprocessing import Preprocessing, preprocess

# White noise loses nine tenths of its deviation and more by it, anatomy little.
_BLUR_SIGMA = 1.5
_BRIGHT = 95  # percentile

NO_SIGNAL = -2.0
"""What 0 becomes with `magnitude`."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How a channel's intensities were scaled: what the network sees is `(stored - mean) / deviation`."""

    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Scaled:
    """An image on the network's grid, its intensities scaled.

    Attributes:
        image: `(C, H, W, D)` float32.
        affine: 4x4 float64, voxel of `image` → world, RAS millimetres.
        scales: Of each channel.
    """

    image: Tensor
    affine: NDArray[np.float64]
    scales: tuple[Scale, ...]


def prepare_image(
    settings: Preprocessing, channels: Sequence[NDArray[np.generic]], affine: NDArray[np.float64]
) -> Scaled:
    """Brings an image to the network's grid and scales its intensities.

    `zscore` takes mean and deviation of each channel after a Gaussian blur (sigma 1.5 voxels), which noise
    hardly changes: a noisy and a clean scan of one patient are scaled alike. `magnitude` maps 0 to -2 and
    the 95th percentile of that copy to 2, for images in which 0 means no signal: noise lifts what is dark,
    and so the mean. `window` maps the window to [-1, 1] and, unlike that of segmentation, does not clip.

    Args:
        settings: Orientation, spacing and how to scale: `zscore`, `magnitude` or `window`.
        channels: One `(I, J, K)` array per channel, all on one grid, in any orientation.
        affine: 4x4, their voxel → world, RAS millimetres.
    """
    prepared = preprocess(replace(settings, normalisation="none"), channels, affine)
    scales = tuple(measure_scale(channel, settings) for channel in prepared.image)
    for channel, scale in zip(prepared.image, scales, strict=True):
        channel.sub_(scale.mean).div_(scale.deviation)
    return Scaled(prepared.image, prepared.affine, scales)


def stack_neighbours(image: Tensor, num: int) -> Tensor:
    """Every slice along the last axis with `num` neighbours on either side as further channels.

    Args:
        image: `(C, H, W, D)`.
        num: 0 gives `image` itself.

    Returns:
        `((2 num + 1) C, H, W, D)`: all channels of the first neighbour, then of the next one, the slice
        itself in the middle. Beyond the ends the last slice is repeated.
    """
    depth = image.shape[-1]
    shifted = [
        image[..., torch.arange(depth).add(offset).clamp(0, depth - 1)] for offset in range(-num, num + 1)
    ]
    return torch.cat(shifted) if num else image


def measure_scale(channel: Tensor, settings: Preprocessing) -> Scale:
    """How a channel is to be scaled; see `prepare_image`.

    Args:
        channel: `(H, W, D)` float32 on the network's grid, in the unit of the image.
        settings: How to scale.
    """
    if settings.normalisation == "window":
        assert settings.window is not None
        low, high = settings.window
        return Scale((low + high) / 2, (high - low) / 2)
    blurred = ndimage.gaussian_filter(channel.numpy(), _BLUR_SIGMA)
    if settings.normalisation == "magnitude":
        bright = float(np.percentile(blurred, _BRIGHT))
        deviation = bright / 4 if bright > 0 else 1.0
        return Scale(-NO_SIGNAL * deviation, deviation)
    assert settings.normalisation == "zscore", "what measures labelled structures cannot be asked here"
    return Scale(float(blurred.mean(dtype=np.float64)), float(blurred.std(dtype=np.float64)) or 1.0)
