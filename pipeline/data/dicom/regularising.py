"""A stack that is not regular, resampled onto a grid that is, if that is asked for.

In the plane, every slice is brought to the pixels of the grid (gantry tilt and other sizes are shifts and
scalings there); along the normal, a slice of the grid is what lies at its place, or the linear mixture of its
two neighbours. What is invented is told, and a wide hole is not filled at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.data.dicom.frames import Frame, tell_names
from pipeline.data.dicom.placing import (
    LPS_TO_RAS,
    STEP_TOLERANCE,
    STEP_TOLERANCE_MM,
    slice_steps,
)
from pipeline.errors import Fault, InputError
from pipeline.volume import Affine, affine_faults

MAX_GAP = 3.0
"""Widest gap between slices that is filled, in steps of the grid: two missing slices in a row."""

_MIN_SHIFT = 0.02  # pixels; below, a slice is taken as it is
_MAX_PIXELS = 2**26

_Pixels = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class RegularGrid:
    """What a stack becomes.

    Attributes:
        shape: Columns, rows and slices.
        affine: Voxel → RAS mm.
        mixtures: Per slice of the grid two frames and the share of the second.
        told: What was done, in words.
    """

    shape: tuple[int, int, int]
    affine: Affine
    mixtures: tuple[tuple[int, int, float], ...]
    told: str


def plan_regular_grid(where: str, frames: Sequence[Frame], copies: Sequence[str]) -> RegularGrid:
    """The grid that parallel slices, sorted along their normal, are resampled to.

    Args:
        where: For faults.
        frames: No two at one place.
        copies: Names of those that were left out because they are the same as another.

    Raises:
        InputError: If a gap is too wide to be filled, or there is no sensible grid.
    """
    steps = slice_steps(frames)
    step = float(np.median(steps)) if len(steps) else 0.0
    if not step > STEP_TOLERANCE_MM:
        raise InputError(Fault(where, "too-few-slices", "a volume needs slices at two places or more"))
    if (widest := float(steps.max())) > MAX_GAP * step * (1 + STEP_TOLERANCE):
        index = int(np.argmax(steps))
        ends = tell_names([frames[index].name, frames[index + 1].name])
        message = (
            f"between {ends} lie {widest:.3f} mm, too much to be filled where slices are {step:.3f} mm "
            "apart; fetch the missing slices"
        )
        raise InputError(Fault(where, "slice-gap", message))
    tolerance = max(STEP_TOLERANCE * step, STEP_TOLERANCE_MM)
    depths = np.concatenate([[0.0], np.cumsum(steps)])
    is_even = bool(np.abs(steps - step).max() <= tolerance)
    num_slices = len(frames) if is_even else round(float(depths[-1]) / step) + 1
    step = float(depths[-1]) / (num_slices - 1)  # first and last stay where they are
    mixtures = tuple(_mix(depths, n * step, tolerance) for n in range(num_slices))
    shape, affine, moved = _plane_grid(frames, step)
    full = (*shape, num_slices)
    if faults := affine_faults(where, affine):
        raise InputError(faults)
    if shape[0] * shape[1] > _MAX_PIXELS:
        raise InputError(Fault(where, "too-large", "the slices lie too far apart for one grid"))
    told = _tell(frames, full, affine, mixtures, moved, copies, is_even)
    return RegularGrid(full, affine, mixtures, told)


def _mix(depths: NDArray[np.float64], depth: float, tolerance: float) -> tuple[int, int, float]:
    upper = int(np.clip(np.searchsorted(depths, depth), 1, len(depths) - 1))
    share = float(np.clip((depth - depths[upper - 1]) / (depths[upper] - depths[upper - 1]), 0, 1))
    nearest = upper - 1 if share < 0.5 else upper
    if abs(depths[nearest] - depth) <= tolerance:
        return nearest, nearest, 0.0
    return upper - 1, upper, share


def _plane_grid(frames: Sequence[Frame], step: float) -> tuple[tuple[int, int], Affine, list[str]]:
    """Columns and rows that cover all slices at the commonest spacing, the affine, and who has to move."""
    common = Counter((frame.size, frame.spacing) for frame in frames).most_common(1)[0][0]
    lead = next(frame for frame in frames if (frame.size, frame.spacing) == common)
    spacing, axes = np.array(lead.spacing), lead.orientation
    starts = np.array([axes @ (frame.position - lead.position) for frame in frames]) / spacing
    ends = starts + [(np.array(frame.size) - 1) * np.array(frame.spacing) / spacing for frame in frames]
    # Whole pixels from the lead, so that slices that lie like it are copied as they are.
    low = np.floor(starts.min(axis=0) + _MIN_SHIFT)
    high = np.ceil(ends.max(axis=0) - _MIN_SHIFT)
    columns, rows = (int(n) for n in high - low + 1)
    origin = lead.position + axes.T @ (low * spacing)
    normal = frames[0].normal / np.linalg.norm(frames[0].normal)
    origin = origin + normal * float(normal @ (frames[0].position - origin))
    affine = np.eye(4)
    affine[:3, :2] = (axes * spacing[:, None]).T
    affine[:3, 2] = normal * step
    affine[:3, 3] = origin
    affine = LPS_TO_RAS @ affine
    moved = [
        frame.name
        for frame, start in zip(frames, starts, strict=True)
        if (frame.size, frame.spacing) != common or np.abs(start).max() > _MIN_SHIFT
    ]
    return (columns, rows), affine, moved


def resample_frames(
    frames: Sequence[Frame],
    grid: RegularGrid,
    pixels: Callable[[Sequence[Frame]], Iterator[tuple[int, _Pixels]]],
) -> _Pixels:
    """The voxels of a regular grid, float32 in Fortran order.

    Args:
        frames: As `grid` was planned for.
        grid: The plan.
        pixels: Reads frames one after the other, in any order.
    """
    array = np.zeros(grid.shape, dtype=np.float32, order="F")
    uses: Mapping[int, list[tuple[int, float]]] = {n: [] for n in range(len(frames))}
    for target, (one, other, share) in enumerate(grid.mixtures):
        uses[one].append((target, 1.0 - share))
        if share > 0:
            uses[other].append((target, share))
    for number, plane in pixels(frames):
        if uses[number]:
            placed = _place(plane, frames[number], grid)
            for target, share in uses[number]:
                array[:, :, target] += np.float32(share) * placed
    return array


def _place(plane: _Pixels, frame: Frame, grid: RegularGrid) -> _Pixels:
    """A slice on the pixels of the grid, linearly; its smallest value where it does not reach."""
    affine = LPS_TO_RAS @ grid.affine
    spacing = np.linalg.norm(affine[:3, :2], axis=0)
    axes = (affine[:3, :2] / spacing).T
    scale = spacing / np.array(frame.spacing)
    offset = axes @ (affine[:3, 3] - frame.position) / np.array(frame.spacing)
    whole = np.round(offset)
    if np.allclose(scale, 1, atol=1e-4) and np.abs(offset - whole).max() <= _MIN_SHIFT:
        return _cut(plane, (int(whole[0]), int(whole[1])), grid.shape[:2])
    result: _Pixels = ndimage.affine_transform(
        plane,
        scale,
        offset=offset,
        output_shape=grid.shape[:2],
        order=1,
        mode="constant",
        cval=float(plane.min()),
    )
    return result


def _cut(plane: _Pixels, start: tuple[int, int], size: tuple[int, int]) -> _Pixels:
    """The plane from pixel `start`, which may lie outside of it, at the given size."""
    if start == (0, 0) and size == plane.shape:
        return plane
    result = np.full(size, plane.min(), dtype=np.float32)
    here = tuple(slice(max(0, -s), min(n, p - s)) for s, n, p in zip(start, size, plane.shape, strict=True))
    there = tuple(slice(h.start + s, h.stop + s) for h, s in zip(here, start, strict=True))
    result[here] = plane[there]
    return result


def _tell(
    frames: Sequence[Frame],
    shape: tuple[int, int, int],
    affine: Affine,
    mixtures: Sequence[tuple[int, int, float]],
    moved: Sequence[str],
    copies: Sequence[str],
    is_even: bool,
) -> str:
    spacing = " x ".join(f"{mm:.3f}" for mm in np.linalg.norm(affine[:3, :3], axis=0))
    mixed = [(frames[one].name, frames[other].name) for one, other, share in mixtures if share > 0]
    parts = [f"resampled to {' x '.join(map(str, shape))} voxels of {spacing} mm"]
    if mixed:
        parts.append(
            f"{len(mixed)} slices mixed from their neighbours, such as between {' and '.join(mixed[0])}"
        )
    if not is_even:
        parts.append(
            f"the steps between slices ran from {slice_steps(frames).min():.3f} to "
            f"{slice_steps(frames).max():.3f} mm"
        )
    if moved:
        parts.append(f"{len(moved)} slices moved or scaled in their plane, such as {tell_names(moved)}")
    if copies:
        parts.append(f"copies left out: {tell_names(copies)}")
    return "; ".join(parts) + ". The result lies on this grid, not on the slices"
