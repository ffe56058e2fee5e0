"""Changes of intensity, each in place on one channel `(H, W, D)` or `(H, W)` float32.

In place and one channel at a time, since each happens to few of them: a batch with a mask would touch all.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Generator, Tensor

_SMALLEST = 1e-8


def blur(channel: Tensor, sigma: float) -> None:
    """Convolves with a Gaussian that ends at 3 sigma; the edge goes on outside.

    Args:
        channel: Is changed.
        sigma: In voxels, the same along every axis.
    """
    radius = max(1, math.ceil(3 * sigma))
    values = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(radius + 1)]
    weights = [value / (2 * sum(values) - values[0]) for value in values]
    for axis, size in enumerate(channel.shape):
        places = torch.arange(-radius, size + radius, device=channel.device).clamp_(0, size - 1)
        wide = channel.index_select(axis, places)
        torch.mul(wide.narrow(axis, radius, size), weights[0], out=channel)
        for k in range(1, radius + 1):
            channel.add_(wide.narrow(axis, radius - k, size), alpha=weights[k])
            channel.add_(wide.narrow(axis, radius + k, size), alpha=weights[k])


def add_noise(image: Tensor, deviation: float, generator: Generator) -> None:
    """Adds independent Gaussian noise to every voxel of `image`, of any shape."""
    image.add_(torch.randn(image.shape, generator=generator, device=image.device), alpha=deviation)


def change_contrast(channel: Tensor, factor: float) -> None:
    """Multiplies the distance from the mean by `factor`."""
    channel.lerp_(channel.mean(), 1 - factor)


def lower_resolution(channel: Tensor, share: float, still: int | None) -> None:
    """Takes the nearest of fewer voxels and interpolates linearly between them.

    Args:
        channel: Is changed.
        share: Of the voxels left along each axis.
        still: An axis that keeps all of its voxels.
    """
    sizes = [n if axis == still else max(1, round(n * share)) for axis, n in enumerate(channel.shape)]
    few = F.interpolate(channel[None, None], sizes, mode="nearest-exact")
    mode = "trilinear" if channel.ndim == 3 else "bilinear"
    channel.copy_(F.interpolate(few, channel.shape, mode=mode)[0, 0])


def apply_gamma(channel: Tensor, exponent: float) -> None:
    """Raises intensity, scaled to [0, 1], to a power; mean and deviation become what they were."""
    low, high = channel.aminmax()
    mean, deviation = _moments(channel)
    channel.sub_(low).div_((high - low).clamp_min(_SMALLEST)).pow_(exponent)
    new_mean, new_deviation = _moments(channel)
    channel.sub_(new_mean).mul_(deviation / new_deviation.clamp_min(_SMALLEST)).add_(mean)


def apply_inverted_gamma(channel: Tensor, exponent: float) -> None:
    """The same for the negative: what is bright is spread where `apply_gamma` spreads what is dark."""
    channel.neg_()
    apply_gamma(channel, exponent)
    channel.neg_()


def _moments(channel: Tensor) -> tuple[Tensor, Tensor]:
    mean = channel.mean()
    # `std` takes five times as long.
    deviation = torch.linalg.vector_norm(channel - mean) / math.sqrt(max(1, channel.numel() - 1))
    return mean, deviation
