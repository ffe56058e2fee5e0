"""The part of a case that a page carries for looking at it in three dimensions."""

from __future__ import annotations

import base64
import gzip
import math
from collections.abc import Mapping
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.report.content import View
from pipeline.report.scene import MARGIN_MM, Array
from pipeline.volume import Affine, Grid

MISSED, ADDED, CONFUSED = 1, 2, 3
"""Values of a difference: only the reference, only the prediction, or another structure holds the voxel."""


@dataclass(frozen=True, eq=False)
class Cutout:
    """The surroundings of a case's structures, perhaps only every n-th voxel: none is made up.

    Attributes:
        layers: `image`, `reference`, `prediction` and `difference`, as far as they are known, on one grid.
            Label maps hold positions in the legend, from 1, instead of label values.
        grid: Where the shown voxels lie.
        first: Index of the first shown voxel along each stored axis of the whole volume.
        steps: Along each axis every n-th voxel is shown.
    """

    layers: Mapping[str, Array]
    grid: Grid
    first: tuple[int, int, int]
    steps: tuple[int, int, int]

    @property
    def focus(self) -> tuple[float, float, float]:
        """World coordinates of a voxel amid the largest difference, else the structures, else the volume."""
        for name in ("difference", "prediction", "reference"):
            layer = self.layers.get(name)
            if layer is not None and layer.any():
                index = _middle(_largest_component(layer != 0) if name == "difference" else layer != 0)
                break
        else:
            index = np.array(self.grid.shape) // 2
        x, y, z = (self.grid.affine @ (*index, 1))[:3].tolist()
        return x, y, z

    def encode(self) -> dict[str, str]:
        """Each layer as a NIfTI file, gzipped, as base64."""
        return {name: _encode(layer, self.grid.affine) for name, layer in self.layers.items()}


def cut_out(view: View, max_voxels: int) -> Cutout:
    """Takes of a case what lies around its structures.

    Args:
        view: The case.
        max_voxels: Where more lie there, every second, third … voxel is taken, first along the axes on which
            they lie closest.
    """
    whole = next(iter(view.maps.values())).grid
    box = _box_around([volume.array for volume in view.maps.values()], whole.spacing)
    steps = _steps([part.stop - part.start for part in box], whole.spacing, max_voxels)
    part = tuple(slice(within.start, within.stop, step) for within, step in zip(box, steps, strict=True))
    maps = {name: volume.array[part] for name, volume in view.maps.items()}
    layers: dict[str, Array] = {}
    if view.image is not None:
        layers["image"] = _compact(view.image.array[part])
    layers |= {name.lower(): _positions(array, view.values) for name, array in maps.items()}
    if len(maps) == 2:
        layers["difference"] = _difference(maps["Reference"], maps["Prediction"], view)
    i, j, k = (within.start for within in box)
    affine = whole.affine @ np.diag([*steps, 1])
    affine[:3, 3] = (whole.affine @ (i, j, k, 1))[:3]
    shape = next(iter(layers.values())).shape
    return Cutout(layers, Grid(shape, affine), (i, j, k), steps)


def _box_around(maps: list[Array], spacing: tuple[float, ...]) -> list[slice]:
    mask = np.logical_or.reduce([label_map != 0 for label_map in maps])
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        return [slice(0, size) for size in mask.shape]
    margins = [math.ceil(MARGIN_MM / mm) for mm in spacing]
    return [
        slice(max(0, within.start - margin), min(size, within.stop + margin))
        for within, margin, size in zip(boxes[0], margins, mask.shape, strict=True)
    ]


def _steps(sizes: list[int], spacing: tuple[float, ...], max_voxels: int) -> tuple[int, int, int]:
    steps = [1, 1, 1]
    while math.prod(math.ceil(size / step) for size, step in zip(sizes, steps, strict=True)) > max_voxels:
        shown = [
            mm * step if step < size else math.inf
            for mm, step, size in zip(spacing, steps, sizes, strict=True)
        ]
        steps[int(np.argmin(shown))] += 1
    i, j, k = steps
    return i, j, k


def _compact(image: Array) -> Array:
    """At most two bytes a voxel: whole numbers as they are, others as float32, which `_encode` rounds."""
    if image.dtype.kind in "uib" and np.can_cast(np.min_scalar_type(image.max()), np.int16):
        return image.astype(np.int16)
    return image.astype(np.float32)


def _positions(label_map: Array, values: Mapping[str, int]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    positions = np.zeros(label_map.shape, np.min_scalar_type(len(values)))
    for position, value in enumerate(values.values(), start=1):
        positions[label_map == value] = position
    return positions


def _difference(reference: Array, prediction: Array, view: View) -> NDArray[np.uint8]:
    known = np.ones(reference.shape, bool) if view.ignore_value is None else reference != view.ignore_value
    judged = known & ~np.isin(prediction, list(view.unlabelled))
    difference = np.zeros(reference.shape, np.uint8)
    difference[(reference != 0) & (prediction == 0) & judged] = MISSED
    difference[(reference == 0) & (prediction != 0) & judged] = ADDED
    difference[(reference != 0) & (prediction != 0) & (reference != prediction) & judged] = CONFUSED
    return difference


def _largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    components, _ = ndimage.label(mask)
    largest: NDArray[np.bool_] = components == 1 + np.argmax(np.bincount(components.ravel())[1:])
    return largest


def _middle(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The voxel of a mask that lies nearest to its centre."""
    voxels = np.argwhere(mask)
    nearest: NDArray[np.int64] = voxels[np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).argmin()]
    return nearest


def _encode(layer: Array, affine: Affine) -> str:
    file = nib.Nifti1Image(np.asfortranarray(layer), affine)
    if layer.dtype.kind == "f":
        file.set_data_dtype(np.int16)  # with slope and intercept: 65536 grey values
    return base64.b64encode(gzip.compress(file.to_bytes(), compresslevel=6, mtime=0)).decode()
