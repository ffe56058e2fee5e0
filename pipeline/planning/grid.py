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
_VOXELS_ACROSS = 4.0  # of the thinnest structure, where the cases' grid is made coarser
_FEWEST_ACROSS = 3.0  # of the thinnest structure, or the grid is made finer
_FINEST = 1.5  # times finer than the cases: interpolation shows no more
_STEP = 1.05


def choose_spacing(fingerprint: Fingerprint, patch_voxels: float) -> Choice[list[float]]:
    """Millimetres per voxel: the median of the cases, then what structures need and a patch can make use of.

    Along left-right, back-front and down-up. Median and coarse axis are from nnU-Net (Isensee et al. 2021).

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
    fine = _refined(native, axis, fingerprint)
    spacing = _coarsened(fine, fingerprint, patch_voxels)
    if spacing != native:
        reason = "not the cases' " + " x ".join(f"{mm:.3g}" for mm in native)
    if fine != native:
        reason += f": finer where the thinnest structure would have less than {_FEWEST_ACROSS:g} voxels"
    if spacing != fine:
        reason += (
            ": coarser, so that a patch that the minutes afford sees more of the body, where the thinnest "
            f"structure keeps {_VOXELS_ACROSS:g} voxels"
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


def _refined(native: Sequence[float], coarse: int | None, fingerprint: Fingerprint) -> list[float]:
    """Shortens the edges across which a structure is too thin; none below the shortest, and no coarse one."""
    spacing = list(native)
    for axis, thickness in enumerate(thinnest_mm(fingerprint)):
        if thickness and axis != coarse:
            least = max(min(native), native[axis] / _FINEST)
            spacing[axis] = min(native[axis], max(least, thickness / _FEWEST_ACROSS))
    return spacing


def _coarsened(fine: Sequence[float], fingerprint: Fingerprint, patch_voxels: float) -> list[float]:
    """Lengthens whichever voxel edge is shortest until a patch covers enough, or structures grow too thin."""
    spacing = list(fine)
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
