"""Ellipsoids that a tiny network learns in seconds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PHANTOM_LABELS = {"background": 0, "shell": 1, "core": 2}


def draw_phantom(
    shape: tuple[int, int, int], num_channels: int, generator: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """One phantom.

    Args:
        shape: Voxels per axis.
        num_channels: Channels of the image, each with its own contrast.
        generator: Determines place, size, contrast and noise.

    Returns:
        Image `(I, J, K)`, or `(I, J, K, channel)` with several channels, and label map `(I, J, K)`.
    """
    size = np.array(shape)
    radii = size * generator.uniform(0.25, 0.35, 3)
    centre = (size - 1) / 2 + generator.uniform(-0.12, 0.12, 3) * size
    offsets = (np.indices(shape).T - centre) / radii
    distance = np.linalg.norm(offsets, axis=-1).T
    label = (distance < 1).astype(np.uint8) + (distance < 0.6)
    means = generator.permuted(np.tile((100.0, 300.0, 500.0), (num_channels, 1)), axis=1)
    image = means.T[label] + generator.normal(0, 30, (*shape, num_channels))
    return np.rint(image.squeeze(-1) if num_channels == 1 else image).astype(np.int16), label.astype(np.uint8)
