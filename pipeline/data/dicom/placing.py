"""Where the slices of a stack lie: one even step apart on one line, or what is wrong with that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dicom.frames import Frame, tell_names
from pipeline.volume import Affine, affine_faults

STEP_TOLERANCE, STEP_TOLERANCE_MM = 0.01, 0.01
"""How far a slice may lie from its place: 1 % of the step between slices, or 0.01 mm if that is more."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From DICOM's world to ours."""

REGULARISE = "or resample it with --regularise (data.regularise in a config)"


def slice_steps(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """Millimetres between sorted slices, along their normal; SliceThickness is another thing."""
    if not frames:
        return np.empty(0)
    return np.diff(np.array([frame.position for frame in frames]) @ frames[0].normal)


def stack_affine(frames: Sequence[Frame]) -> Affine:
    """Voxel (column, row, slice) → RAS mm, from the tags of sorted slices (DICOM PS3.3 C.7.6.2.1.1)."""
    first, last = frames[0], frames[-1]
    affine = np.eye(4)
    affine[:3, :2] = (first.orientation * np.array(first.spacing)[:, None]).T
    affine[:3, 2] = (last.position - first.position) / (len(frames) - 1)
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine


def placing_problems(frames: Sequence[Frame]) -> Iterator[tuple[str, str]]:
    """Rule and message of what keeps sorted slices of one plane from being one regular volume."""
    if len(frames) < 2:
        yield "too-few-slices", f"a volume needs at least 2 slices, this is {len(frames)}"
        return
    positions = np.array([frame.position for frame in frames])
    steps = slice_steps(frames)
    if odd := [frame.name for frame, step in zip(frames[1:], steps, strict=True) if step < STEP_TOLERANCE_MM]:
        message = (
            f"{len(odd)} slices lie where another one lies, such as {tell_names(odd)}, and no time, echo or "
            f"acquisition tells them apart; keep one file per position, {REGULARISE} if they are copies"
        )
        yield "slice-position", message
        return
    tolerance = max(STEP_TOLERANCE * float(np.median(steps)), STEP_TOLERANCE_MM)
    if steps.max() - steps.min() > tolerance:
        widest = int(np.argmax(steps))
        ends = tell_names([frames[widest].name, frames[widest + 1].name])
        message = (
            f"the steps between slices run from {steps.min():.3f} to {steps.max():.3f} mm, the largest "
            f"between {ends}; fetch the missing slice, {REGULARISE}"
        )
        yield "slice-step", message
        return
    straight = positions[0] + np.linspace(0, 1, len(frames))[:, None] * (positions[-1] - positions[0])
    shifts = np.abs(positions - straight).max(axis=1)
    if odd := [f.name for f, shift in zip(frames, shifts, strict=True) if shift > tolerance]:
        message = (
            f"the slices are shifted against each other, such as {tell_names(odd)}; mend it, {REGULARISE}"
        )
        yield "slice-shift", message
        return
    for fault in affine_faults("", stack_affine(frames)):
        hint = f" ({REGULARISE.removeprefix('or ')})" if fault.rule == "shear" else ""
        yield fault.rule, f"{fault.message}{hint}"
