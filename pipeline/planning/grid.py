"""Which grid the network sees."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from pipeline.data.fingerprint import Fingerprint
from pipeline.planning.choices import Choice

ANISOTROPY = 3.0
"""An axis is coarse if its voxels are this many times longer than those of the other axes (as in nnU-Net)."""

_COVERAGE = 0.25  # of the content, by a patch
_VOXELS_ACROSS = 4.0  # of the thinnest structure
_STEP = 1.05


def choose_spacing(fingerprint: Fingerprint, patch_voxels: float) -> Choice[list[float]]:
    """Millimetres per voxel: the median of the cases, then no finer than a patch can make use of.

    Args:
        fingerprint: Of the study.
        patch_voxels: Voxels that a patch may have.
    """
    native = list(fingerprint.spacing)
    reason = f"median of {len(fingerprint.cases)} cases"
    axis = _coarse_axis(fingerprint)
    if axis is not None:
        others = [mm for other, mm in enumerate(native) if other != axis]
        tenth = float(np.percentile([case.spacing[axis] for case in fingerprint.cases], 10))
        native[axis] = max(tenth, *others)
        reason += f"; along {_AXES[axis]}, which is coarse, their 10th percentile"
    spacing = _coarsened(native, fingerprint, patch_voxels)
    if spacing != native:
        told = " x ".join(f"{mm:.3g}" for mm in native)
        reason = (
            f"coarser than the cases' {told}: so a patch that the minutes afford sees more of the body, and "
            f"the thinnest structure is still {_VOXELS_ACROSS:g} voxels thick"
        )
    return Choice([_rounded(mm) for mm in spacing], reason)


def thinnest_mm(fingerprint: Fingerprint) -> list[float]:
    """Per axis the thickness of the structure that is thinnest there; medians over the cases."""
    sizes = [cases for cases in fingerprint.sizes.values() if cases]
    if not sizes:
        return [0.0, 0.0, 0.0]
    return [min(median(size.thickness_mm[axis] for size in cases) for cases in sizes) for axis in range(3)]


_AXES = ("left-right", "back-front", "down-up")


def _coarse_axis(fingerprint: Fingerprint) -> int | None:
    """The axis with thick slices, if there is one: more than 3 times as coarse as the others, and shorter.

    nnU-Net's rule, except that fewer voxels are enough: there they must be less than a third.
    """
    spacing, extent = fingerprint.spacing, fingerprint.extent_mm
    axis = max(range(3), key=lambda a: spacing[a])
    others = [other for other in range(3) if other != axis]
    is_coarse = spacing[axis] > ANISOTROPY * max(spacing[other] for other in others)
    is_short = extent[axis] / spacing[axis] < min(extent[other] / spacing[other] for other in others)
    return axis if is_coarse and is_short else None


def _coarsened(native: Sequence[float], fingerprint: Fingerprint, patch_voxels: float) -> list[float]:
    """Lengthens whichever voxel edge is shortest until a patch covers enough, or structures grow too thin."""
    spacing = list(native)
    largest = [thickness / _VOXELS_ACROSS for thickness in thinnest_mm(fingerprint)]
    while np.prod(np.divide(fingerprint.extent_mm, spacing)) * _COVERAGE > patch_voxels:
        free = [axis for axis in range(3) if spacing[axis] * _STEP <= largest[axis]]
        if not free:
            break
        spacing[min(free, key=lambda axis: spacing[axis])] *= _STEP
    return spacing


def _rounded(mm: float) -> float:
    """Three digits: headers store noise behind them."""
    return float(f"{mm:.3g}")
