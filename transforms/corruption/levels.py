"""All corruptions by name, each in five grades."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from transforms.corruption.contract import Corruption
from transforms.corruption.low_dose import LowDose
from transforms.corruption.magnitude import BiasField, RicianNoise
from transforms.corruption.motion import Motion
from transforms.corruption.resolution import Blur, ThickSlices

CORRUPTIONS: Mapping[str, tuple[Corruption, ...]] = MappingProxyType(
    {
        "rician_noise": tuple(RicianNoise(psnr) for psnr in (35.0, 30.0, 25.0, 20.0, 15.0)),
        "low_dose": tuple(LowDose(dose) for dose in (0.5, 0.25, 0.1, 0.05, 0.025)),
        "bias_field": tuple(BiasField(amplitude) for amplitude in (0.1, 0.2, 0.4, 0.7, 1.0)),
        "motion": tuple(Motion(bound, bound) for bound in (0.5, 1.0, 2.0, 3.0, 5.0)),
        "blur": tuple(Blur(fwhm) for fwhm in (1.0, 1.5, 2.0, 3.0, 4.0)),
        "thick_slices": tuple(ThickSlices(factor) for factor in (2, 3, 4, 5, 6)),
    }
)
"""From severity 1 (seen by whoever looks for it) to 5 (worse than what a hospital would keep)."""


def corrupt(
    corruption: Corruption, image: Tensor, affine: NDArray[np.float64], seed: int
) -> tuple[Tensor, NDArray[np.float64]]:
    """Makes an image worse, and tells where its voxels lie afterwards.

    Args:
        corruption: One of `CORRUPTIONS`, or one with a strength of its own.
        image: `(C, H, W, D)` or `(C, H, W)` float32, in its own unit.
        affine: 4x4 voxel → world, millimetres; gives the spacing.
        seed: Of all that is random.

    Returns:
        The worse image and its affine, which only thick slices change.

    Raises:
        ValueError: The image cannot be corrupted so.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[: image.ndim - 1].tolist()
    changed = corruption(image, spacing, seed)
    if isinstance(corruption, ThickSlices):
        return changed, corruption.affine_after(affine)
    return changed, affine
