"""A segmentation read back: whether every frame lies in its place in the patient and holds what it should."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from pipeline.export.dicom_source import lps_affine
from pipeline.export.prediction import Prediction
from pipeline.volume import Grid

_PLACE_TOLERANCE = 0.01
"""Voxels by which a frame's corners, read back, may lie beside those of its plane."""
LEVELS: Final = 255
"""A probability of 1 in a fractional segmentation; a voxel is within half a level of what was predicted."""

Kind = Literal["BINARY", "FRACTIONAL"]


def numbers(values: Iterable[Any]) -> list[float]:
    """Decimal strings as numbers."""
    return [float(value) for value in values]


def is_placed(found: Dataset, prediction: Prediction, kind: Kind, stack: NDArray[Any] | None) -> bool:
    """Whether every frame lies on its plane and holds its voxels, and every plane with voxels has a frame."""
    names = list(prediction.contract.structures)
    missing = {
        (number, plane)
        for number, plane in itertools.product(range(1, len(names) + 1), range(prediction.grid.shape[2]))
        if stack is not None and _expected(prediction, kind, stack, names, number, plane).any()
    }
    frames = zip(found.PerFrameFunctionalGroupsSequence, _pixels(found), strict=True)
    for groups, pixels in frames:
        plane = plane_of(groups, found, prediction.grid)
        number = int(_segment(groups, found).ReferencedSegmentNumber)
        if plane is None or not 1 <= number <= len(names):
            return False
        expected = _expected(prediction, kind, stack, names, number, plane)
        if not np.array_equal(pixels, expected):
            return False
        missing.discard((number, plane))
    return not missing


def _pixels(found: Dataset) -> Iterator[NDArray[Any]]:
    """Frames one after the other; those of single bits need not begin with a byte."""
    stored, size = np.frombuffer(found.PixelData, np.uint8), found.Rows * found.Columns
    for first in range(0, int(found.NumberOfFrames) * size, size):
        if found.BitsAllocated == 1:
            start, end = first // 8, -(-(first + size) // 8)
            bits = np.unpackbits(stored[start:end], bitorder="little")
            frame = bits[first - 8 * start : first - 8 * start + size]
        else:
            frame = stored[first : first + size]
        yield frame.reshape(found.Rows, found.Columns)


def _segment(groups: Dataset, found: Dataset) -> Dataset:
    shared = found.SharedFunctionalGroupsSequence[0]
    holder = groups if "SegmentIdentificationSequence" in groups else shared
    identification: Dataset = holder.SegmentIdentificationSequence[0]
    return identification


def _expected(
    prediction: Prediction,
    kind: Kind,
    stack: NDArray[Any] | None,
    names: Sequence[str],
    number: int,
    plane: int,
) -> NDArray[Any]:
    """What a frame has to hold, from the label map itself; of probabilities their nearest level."""
    if kind == "FRACTIONAL" and stack is not None:
        levels: NDArray[Any] = np.around(stack[plane, :, :, number - 1] * LEVELS).astype(np.uint8)
        return levels
    return prediction.mask(names[number - 1], plane)


def plane_of(groups: Dataset, found: Dataset, grid: Grid) -> int | None:
    """The plane of the grid that a frame's corners lie on; None if they lie elsewhere."""
    shared = found.SharedFunctionalGroupsSequence[0]
    orientation = np.array(numbers(shared.PlaneOrientationSequence[0].ImageOrientationPatient)).reshape(2, 3)
    between_rows, between_columns = numbers(shared.PixelMeasuresSequence[0].PixelSpacing)
    corner = np.array(numbers(groups.PlanePositionSequence[0].ImagePositionPatient))
    along_row = orientation[0] * between_columns * (found.Columns - 1)
    along_column = orientation[1] * between_rows * (found.Rows - 1)
    corners = np.array([corner, corner + along_row, corner + along_column])
    to_voxel = np.linalg.inv(lps_affine(grid))
    voxels = corners @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    plane = round(float(voxels[0, 2]))
    places = np.array([(0, 0, plane), (grid.shape[0] - 1, 0, plane), (0, grid.shape[1] - 1, plane)])
    is_there = np.abs(voxels - places).max() <= _PLACE_TOLERANCE and 0 <= plane < grid.shape[2]
    return plane if is_there else None
