"""Reading one DICOM series as a volume, and listing those that an input holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dicom.choosing import SeriesRule, choose_stack, tell_stacks
from pipeline.data.dicom.finding import find_dicom_files
from pipeline.data.dicom.frames import Frame, tell_names
from pipeline.data.dicom.headers import read_header
from pipeline.data.dicom.pixels import read_pixels
from pipeline.data.dicom.placing import STEP_TOLERANCE_MM, slice_steps, stack_affine
from pipeline.data.dicom.regularising import plan_regular_grid, resample_frames
from pipeline.data.dicom.stacks import Stack, sort_stacks
from pipeline.data.nifti import Reading, check_finite, check_memory
from pipeline.errors import Fault, InputError
from pipeline.files import sha256_of
from pipeline.volume import Grid, Volume


def list_series(
    path: Path, files: Sequence[Path] | None = None, on_file: Callable[[], None] = lambda: None
) -> list[Stack]:
    """Every stack of slices that could be a volume, and every series that cannot, with the reason.

    Args:
        path: A folder, a DICOMDIR or a file.
        files: Those that it stands for, if they are known already.
        on_file: Called after each, to show progress.

    Raises:
        InputError: If there is no DICOM file.
    """
    headers = []
    for file in find_dicom_files(path) if files is None else files:
        headers.append(read_header(file))
        on_file()
    if not headers:
        raise InputError(Fault(str(path), "no-images", "no DICOM file lies here, nor in folders inside"))
    return sort_stacks(headers)


def read_series(path: Path, rule: SeriesRule = SeriesRule()) -> Reading:  # noqa: B008 - it is frozen
    """Reads one DICOM series, in rescaled units.

    Args:
        path: A folder, searched with all inside it, a DICOMDIR or a file of several frames.
        rule: Which series, and whether it may be resampled.

    Returns:
        One volume: float32, `(column, row, slice)` with slices ordered along the normal; affine in RAS, as
        sform. Warnings tell which series was read where others lie, and what was resampled.

    Raises:
        InputError: If the files are not one whole series of parallel, evenly spaced slices.
        ResourceError: If it does not fit into the memory that is available.
    """
    where = str(path)
    stacks = list_series(path)
    stack = choose_stack(where, stacks, rule)
    notes = _choice_notes(where, stacks, stack)
    if not stack.problems:
        return Reading((_read_regular(where, stack),), notes)
    volume, told = _read_irregular(where, stack)
    return Reading((volume,), (*notes, Fault(where, "regularised", told)))


def series_files(path: Path, rule: SeriesRule) -> list[Path]:
    """The files of the series that `read_series` reads.

    Raises:
        InputError: As `read_series`.
    """
    return list(dict.fromkeys(choose_stack(str(path), list_series(path), rule).files))


def series_frames(path: Path, rule: SeriesRule) -> dict[Path, set[int]]:
    """The same files, with the numbers from 0 of the frames in each that are its slices.

    Raises:
        InputError: As `read_series`.
    """
    found: dict[Path, set[int]] = {}
    for frame in choose_stack(str(path), list_series(path), rule).frames:
        found.setdefault(frame.path, set()).add(frame.index)
    return found


def series_hash(path: Path, rule: SeriesRule) -> str:
    """SHA-256 of the files of the series that `read_series` reads, whatever they are called, and what it is.

    Raises:
        InputError: As `read_series`.
        OSError: If a file cannot be read.
    """
    stack = choose_stack(str(path), list_series(path), rule)
    lines = sorted(sha256_of(file) for file in stack.files)
    return hashlib.sha256("\n".join((stack.id, str(rule.is_regularised), *lines)).encode()).hexdigest()


def _choice_notes(where: str, stacks: Sequence[Stack], chosen: Stack) -> tuple[Fault, ...]:
    """What was read, where more than that lies there, and what is odd: nobody should have to guess it later.

    Raises:
        InputError: If its slices do not agree how they are shown.
    """
    is_merged = chosen not in stacks
    others = [s for s in stacks if s is not chosen and not (is_merged and s.series == chosen.series)]
    notes = []
    if others:
        message = f"{tell_stacks([chosen])} was read, one of {len(others) + 1} that lie there"
        notes.append(Fault(where, "series-chosen", message))
    inverted = [frame.name for frame in chosen.frames if frame.is_inverted]
    if 0 < len(inverted) < len(chosen.frames):
        message = (
            f"some of its slices are MONOCHROME1 ({tell_names(inverted)}) and some MONOCHROME2; what their "
            "values mean together is not known, convert the series first"
        )
        raise InputError(Fault(where, "photometric", message))
    if inverted:
        message = "it is MONOCHROME1, shown with low values white; its values are read as they are stored"
        notes.append(Fault(where, "monochrome1", message))
    return tuple(notes)


def _read_regular(where: str, stack: Stack) -> Volume:
    shape = (*stack.frames[0].size, len(stack.frames))
    array = _allocate(where, shape, stack.frames)
    for index, pixels in read_pixels(where, stack.frames):
        array[:, :, index] = pixels
    check_finite(where, array)
    affine = stack_affine(stack.frames)
    return Volume(array, Grid(shape, affine, sform=affine))


def _read_irregular(where: str, stack: Stack) -> tuple[Volume, str]:
    frames, copies = _without_copies(where, stack.frames)
    grid = plan_regular_grid(where, frames, copies)
    check_memory(where, 4 * int(np.prod(grid.shape)))
    array = resample_frames(frames, grid, lambda wanted: read_pixels(where, wanted))
    check_finite(where, array)
    return Volume(array, Grid(grid.shape, grid.affine, sform=grid.affine)), grid.told


def _allocate(where: str, shape: tuple[int, int, int], frames: Sequence[Frame]) -> NDArray[np.float32]:
    """Memory for the voxels, if there is enough for them and for the largest file."""
    largest = max(path.stat().st_size for path in {frame.path for frame in frames})
    check_memory(where, 4 * int(np.prod(shape)) + largest)
    return np.empty(shape, dtype=np.float32, order="F")


def _without_copies(where: str, frames: Sequence[Frame]) -> tuple[list[Frame], list[str]]:
    """The slices but those that show the same as another at their place, and the names of these.

    Raises:
        InputError: If two at one place differ.
    """
    kept = [frames[0]]
    copies: list[str] = []
    for frame, step in zip(frames[1:], slice_steps(frames), strict=True):
        if step >= STEP_TOLERANCE_MM:
            kept.append(frame)
            continue
        pair = [pixels for _, pixels in read_pixels(where, [kept[-1], frame])]
        if pair[0].shape != pair[1].shape or not np.array_equal(pair[0], pair[1]):
            message = (
                f"{kept[-1].name} and {frame.name} lie at one place and differ; only one of them can be "
                "right, take the other out"
            )
            raise InputError(Fault(where, "slice-position", message))
        copies.append(frame.name)
    return kept, copies
