"""How close an image is to the true one: PSNR and SSIM, as `docs/metrics.md` defines them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

IMAGE_METRICS = ("psnr", "ssim")

_RADIUS, _SIGMA = 5, 1.5  # a window of 11 voxels a side, as Wang et al. have it
_K1, _K2 = 0.01, 0.03
_SLAB_VOXELS = 2**20  # worked on together: a dozen numbers in double precision of each

Image = NDArray[np.generic]


def data_range(truth: Image) -> float:
    """The largest value of the truth minus its smallest, which both figures are relative to."""
    return float(truth.max()) - float(truth.min())


def psnr(image: Image, truth: Image, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(range² / mean squared error); infinite if they are equal.

    Args:
        image: Any shape.
        truth: Of the same shape.
        data_range: What counts as the peak; see `data_range`.

    Raises:
        ValueError: If the shapes differ or the range is not positive.
    """
    _check(image, truth, data_range)
    squares = sum(
        float(np.square(one.astype(np.float64) - other).sum())
        for one, other in zip(image, truth, strict=True)
    )
    return 10 * math.log10(data_range**2 * truth.size / squares) if squares else math.inf


def ssim(image: Image, truth: Image, data_range: float) -> float:
    """Mean structural similarity (Wang et al. 2004, doi:10.1109/TIP.2003.819861), in three dimensions.

    A Gaussian window of 11 voxels a side (sigma 1.5), placed wherever it lies inside of the image; along an
    axis with fewer voxels, the widest odd window that fits, so that a single slice is compared in its plane.
    MONAI's `compute_ssim_and_cs` gives the same number in ten times the time, not separating the axes.

    Args:
        image: `(I, J, K)`.
        truth: `(I, J, K)`.
        data_range: What the constants that stabilise it are relative to; see `data_range`.

    Raises:
        ValueError: If the shapes differ or the range is not positive.
    """
    _check(image, truth, data_range)
    longest = int(np.argmax(image.shape))
    image, truth = image.swapaxes(0, longest), truth.swapaxes(0, longest)
    radii = [min(_RADIUS, (size - 1) // 2) for size in image.shape]
    num_places = [size - 2 * radius for size, radius in zip(image.shape, radii, strict=True)]
    step = max(_RADIUS, _SLAB_VOXELS * image.shape[0] // image.size)
    total = 0.0
    for first in range(0, num_places[0], step):
        planes = slice(first, min(first + step, num_places[0]) + 2 * radii[0])
        total += float(_ssim_map(image[planes], truth[planes], data_range, radii).sum())
    return float(total / math.prod(num_places))


def _ssim_map(image: Image, truth: Image, data_range: float, radii: list[int]) -> NDArray[np.float64]:
    """Similarity of every voxel round which the window lies inside."""
    inner = tuple(slice(radius, size - radius) for radius, size in zip(radii, image.shape, strict=True))

    def blur(values: NDArray[np.float64]) -> NDArray[np.float64]:
        blurred: NDArray[np.float64] = ndimage.gaussian_filter(values, _SIGMA, radius=radii)
        return blurred[inner]

    x, y = image.astype(np.float64), truth.astype(np.float64)
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    similarity: NDArray[np.float64] = luminance * (2 * covariance + c2) / (variance_x + variance_y + c2)
    return similarity


def _check(image: Image, truth: Image, data_range: float) -> None:
    if image.shape != truth.shape:
        raise ValueError(f"the image has shape {image.shape}, the truth {truth.shape}")
    if not data_range > 0:
        raise ValueError(f"the truth spans a positive range of values, not {data_range}")
