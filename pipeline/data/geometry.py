"""What an affine must be before anything is measured or predicted on its grid, and what stands for none."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Fault
from pipeline.volume import Affine, Grid, Volume

MIN_SPACING_MM, MAX_SPACING_MM = 0.01, 100.0
MAX_ANISOTROPY = 100.0
MAX_COSINE = 1e-3
"""Largest cosine between two voxel axes; a right angle to within 0.06 degrees."""


def affine_faults(where: str, affine: Affine) -> list[Fault]:
    """Faults of a 4x4 voxel → world affine: not finite, singular, spacing out of range, axes not orthogonal.

    Only the first kind is reported, since the later ones follow from it.
    """
    if not np.isfinite(affine).all():
        return [Fault(where, "affine-not-finite", "the affine holds NaN or infinity; write a valid one")]
    axes = affine[:3, :3]
    with np.errstate(all="ignore"):  # absurd numbers overflow, and are refused below
        spacing = np.linalg.norm(axes, axis=0)
        determinant = np.linalg.det(axes / spacing)
    if not abs(determinant) > 1e-6:  # also when it is NaN
        message = "the affine is singular: its voxel axes do not span space; write a valid sform or qform"
        return [Fault(where, "affine-singular", message)]
    told = " x ".join(f"{mm:.4g}" for mm in spacing)
    if spacing.min() < MIN_SPACING_MM or spacing.max() > MAX_SPACING_MM:
        message = (
            f"voxels measure {told} mm, outside {MIN_SPACING_MM} to {MAX_SPACING_MM:g} mm; "
            "check the unit and the header"
        )
        return [Fault(where, "spacing-range", message)]
    if spacing.max() / spacing.min() > MAX_ANISOTROPY:
        message = f"voxels measure {told} mm, more than {MAX_ANISOTROPY:g} to 1; check the header"
        return [Fault(where, "anisotropy", message)]
    cosines = (axes / spacing).T @ (axes / spacing) - np.eye(3)
    if np.abs(cosines).max() > MAX_COSINE:
        angle = np.degrees(np.arccos(np.clip(np.abs(cosines).max(), 0, 1)))
        message = (
            f"the voxel axes meet at {angle:.2f} degrees, not at right angles (shear or gantry tilt); "
            "resample the image to an orthogonal grid first"
        )
        return [Fault(where, "shear", message)]
    return []


def corner_distance(one: Affine, other: Affine, shape: tuple[int, int, int]) -> float:
    """Largest distance in mm between the centres of the same corner voxel under two affines."""
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in shape))]).T
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())


def without_geometry(array: NDArray[np.generic]) -> Volume:
    """A volume of voxels of which nothing is known but their order: axes as stored, 1 mm apart from 0.

    Args:
        array: `(I, J)`, which becomes `(I, J, 1)`, or `(I, J, K)`.
    """
    voxels = array[..., None] if array.ndim == 2 else array
    i, j, k = voxels.shape
    return Volume(voxels, Grid((i, j, k), np.eye(4), sform=np.eye(4)))
