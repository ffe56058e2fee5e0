"""What to show of a case: its volumes in anatomical order, the slices, the part of them, the grey values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation
from numpy.typing import NDArray

from pipeline.volume import Volume

Array = NDArray[Any]

_PICTURE = "PLS"
"""As if a picture were an axial slice: as that is drawn, rows run down and columns to the right."""
MARGIN_MM = 25.0
"""Least context shown around the structures."""


@dataclass(frozen=True, slots=True)
class Plane:
    """A picture spanned by two RAS axes, across the third."""

    name: str
    horizontal: int
    vertical: int
    normal: int


PLANES = (Plane("Axial", 0, 1, 2), Plane("Coronal", 0, 2, 1), Plane("Sagittal", 1, 2, 0))


@dataclass(frozen=True, eq=False, slots=True)
class Scene:
    """One case, ready to be drawn; arrays are in RAS order.

    Attributes:
        image: Intensities.
        maps: Label maps, or maps of numbers, by the name of their row.
        spacing: Millimetres per voxel.
        cut: Index of the slice shown across each axis.
        view: First and last millimetre shown along each axis, measured from the array's corner.
        window: The intensities drawn black and white.
        has_geometry: Whether axes and spacing are known; those of a picture only say how it is looked at.
    """

    image: Array
    maps: Mapping[str, Array]
    spacing: tuple[float, ...]
    cut: tuple[int, ...]
    view: tuple[tuple[float, float], ...]
    window: tuple[float, float]
    has_geometry: bool = True

    @property
    def planes(self) -> list[Plane]:
        """The planes worth a picture: a single slice has no other views."""
        shape = self.image.shape
        planes = [p for p in PLANES if min(shape[p.horizontal], shape[p.vertical]) > 1] or [PLANES[0]]
        return planes if self.has_geometry else [replace(plane, name="") for plane in planes]

    def extent(self, axis: int) -> float:
        """Millimetres shown along an axis."""
        first, last = self.view[axis]
        return last - first

    def slice(self, array: Array, plane: Plane) -> Array:
        """The shown slice of an array, `(horizontal, vertical)`."""
        shown: Array = array.take(self.cut[plane.normal], axis=plane.normal)
        return shown


def compose_scene(
    image: Volume, maps: Mapping[str, Volume], values: Sequence[int], beside: Sequence[Volume] = ()
) -> Scene:
    """Chooses what to show of one case.

    Oblique volumes are turned to the nearest anatomical axes, not resampled. Each plane shows the slice that
    holds most of the structures and is cropped to their surroundings. Grey values run from the 1st to the
    99th percentile of the image, the lowest value left out, since it often is mere padding.

    Args:
        image: Intensities.
        maps: Label maps on the grid of `image`.
        values: The label values that are structures.
        beside: Label maps of other pictures that shall show the same slices and surroundings as this one.
    """
    orientation = io_orientation(image.grid.affine)
    turned = {name: apply_orientation(volume.array, orientation) for name, volume in maps.items()}
    others = [apply_orientation(volume.array, orientation) for volume in beside]
    array = apply_orientation(image.array, orientation)
    profiles = _profiles(array.shape, [*turned.values(), *others], values)
    cut = tuple(map(_fullest, profiles))
    spacing = _turned_spacing(image, orientation)
    return Scene(array, turned, spacing, cut, _view_around(profiles, spacing), grey_window(array))


def compose_scene_at_peak(image: Volume, name: str, values: Volume, *, has_geometry: bool) -> Scene:
    """Shows all of an image in the planes through a map's maximum, or its middle if nothing is positive.

    Args:
        image: Intensities.
        name: Of the map's row.
        values: Numbers on the grid of `image`.
        has_geometry: False for a picture `(rows, columns, 1)`, which is shown upright and without directions.
    """
    orientation = io_orientation(image.grid.affine) if has_geometry else axcodes2ornt(_PICTURE)
    array, turned = (apply_orientation(volume.array, orientation) for volume in (image, values))
    spacing = _turned_spacing(image, orientation)
    view = tuple((0.0, size * mm) for size, mm in zip(array.shape, spacing, strict=True))
    return Scene(array, {name: turned}, spacing, _peak(turned), view, grey_window(array), has_geometry)


def _turned_spacing(image: Volume, orientation: Array) -> tuple[float, ...]:
    return tuple(image.grid.spacing[axis] for axis in np.argsort(orientation[:, 0]))


def _peak(values: Array) -> tuple[int, ...]:
    """The middle one of the voxels that hold the maximum, which may be many beside each other."""
    if values.max() <= 0:
        return tuple(size // 2 for size in values.shape)
    highest = np.argwhere(values == values.max())
    middle = np.linalg.norm(highest - highest.mean(axis=0), axis=1).argmin()
    return tuple(int(index) for index in highest[middle])


def _profiles(
    shape: Sequence[int], maps: Sequence[Array], values: Sequence[int]
) -> list[NDArray[np.float64]]:
    """How much of the structures each slice across each axis holds."""
    profiles = [np.zeros(size) for size in shape]
    for value in values:
        mask = np.logical_or.reduce([label_map == value for label_map in maps])
        # Shares, not voxels, so that a large structure does not overrule a small one.
        num_voxels = max(1, np.count_nonzero(mask))
        for axis, profile in enumerate(profiles):
            profile[:] += mask.sum(axis=tuple({0, 1, 2} - {axis})) / num_voxels
    return profiles


def _fullest(profile: NDArray[np.float64]) -> int:
    """The middle one of the slices that hold nearly the most; the image's middle if none holds anything."""
    candidates = np.flatnonzero(profile >= 0.95 * profile.max())
    return int(candidates[len(candidates) // 2])


def _view_around(
    profiles: Sequence[NDArray[np.float64]], spacing: Sequence[float]
) -> tuple[tuple[float, float], ...]:
    sizes = [len(profile) * mm for profile, mm in zip(profiles, spacing, strict=True)]
    if not profiles[0].any():
        return tuple((0.0, size) for size in sizes)
    ends = [np.flatnonzero(profile)[[0, -1]] + (0, 1) for profile in profiles]
    boxes = [(first * mm, last * mm) for (first, last), mm in zip(ends, spacing, strict=True)]
    margin = max(MARGIN_MM, 0.25 * max(last - first for first, last in boxes))
    return tuple(
        (max(0.0, first - margin), min(size, last + margin))
        for (first, last), size in zip(boxes, sizes, strict=True)
    )


def grey_window(array: Array) -> tuple[float, float]:
    """The intensities drawn black and white: the 1st and the 99th percentile, the lowest value left out."""
    lowest = array.min()
    content = array[array > lowest]
    if content.size == 0:  # constant: a middle grey
        return float(lowest) - 0.5, float(lowest) + 0.5
    low, high = map(float, np.percentile(content, (1, 99)))
    return (low, high) if low < high else (float(lowest), high)
