"""Outlines of a mask as polygons without holes, and the mask of such polygons.

An outline runs half-way between the centres of pixels inside and outside, so that filling it gives back the
very same pixels. A hole is joined to the outline around it by a channel without width (a keyhole), as DICOM
has it (PS3.3 C.8.8.6.3): readers that know polygons only then know holes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

Polygon = NDArray[np.float64]
"""`(N, 2)` corners as (column, row), the centre of the first pixel at (0, 0); the first is not repeated."""

_Point = tuple[int, int]
"""Column and row in half pixels."""


def outline(mask: NDArray[np.bool_]) -> Iterator[Polygon]:
    """Polygons of a mask `(row, column)`: one for each part, its holes joined to it."""
    generator = contour_generator(z=np.pad(mask, 1).astype(np.float32), fill_type=FillType.OuterOffset)
    run_starts = np.maximum.accumulate(np.where(mask, 0, np.arange(1, mask.shape[1] + 1)), axis=1)
    for points, offsets in zip(*generator.filled(0.5, 2.0), strict=True):
        # All points lie at whole and half pixels: doubled, they are exact.
        doubled = np.rint(2 * np.asarray(points) - 2).astype(int)
        rings = [_points(doubled[first : last - 1]) for first, last in itertools.pairwise(offsets.tolist())]
        yield _corners(np.array(_join(rings[0], rings[1:], run_starts), np.float64) / 2)


def fill(polygon: Polygon, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels `(row, column)` whose centres lie inside: those with an odd number of edges to their left."""
    ends = np.roll(polygon, -1, axis=0)
    lower, upper = np.minimum(polygon[:, 1], ends[:, 1]), np.maximum(polygon[:, 1], ends[:, 1])
    first = np.ceil(lower).astype(int)
    num_rows = np.maximum(np.ceil(upper).astype(int) - first, 0)
    edge = np.repeat(np.arange(len(polygon)), num_rows)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(num_rows) - num_rows, num_rows)
    start, end = polygon[edge], ends[edge]
    x = start[:, 0] + (row - start[:, 1]) / (end[:, 1] - start[:, 1]) * (end[:, 0] - start[:, 0])
    column = np.ceil(x).astype(int).clip(0, shape[1])
    is_within = (row >= 0) & (row < shape[0])
    crossings = np.zeros((shape[0], shape[1] + 1), np.int32)
    np.add.at(crossings, (row[is_within], column[is_within]), 1)
    inside: NDArray[np.bool_] = np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1
    return inside


def _points(doubled: NDArray[np.int_]) -> list[_Point]:
    return [(x, y) for x, y in doubled.tolist()]


def _join(outer: list[_Point], holes: list[list[_Point]], run_starts: NDArray[np.int_]) -> list[_Point]:
    """One polygon. From the leftmost point of a hole a channel runs left to where the mask begins there.

    That point is on the outline or on another hole further left, and no other channel ends in it.
    """
    waiting: dict[_Point, list[_Point]] = {}
    for hole in holes:
        start = hole.index(min(hole))
        x, y = hole[start]
        end = (2 * int(run_starts[y // 2, (x - 1) // 2]) - 1, y)
        waiting[end] = [*hole[start:], *hole[: start + 1], end]
    path: list[_Point] = []
    walks = [iter(outer)]
    while walks:
        point = next(walks[-1], None)
        if point is None:
            walks.pop()
            continue
        path.append(point)
        if hole_path := waiting.pop(point, None):
            walks.append(iter(hole_path))
    assert not waiting, "a hole lies within its outline"
    return path


def _corners(ring: Polygon) -> Polygon:
    """The ring without the points that lie on a straight line between their neighbours."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    kept: Polygon = ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return kept
