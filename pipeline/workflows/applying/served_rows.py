"""What a request to a served model holds: an image per row, as a path, a file's bytes, or an array."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipeline.data.cases import Case
from pipeline.data.class_inputs import find_class_inputs
from pipeline.data.images import find_inputs
from pipeline.errors import Fault, InputError

INPUTS: Final = {"path": "text", "image": "bytes", "array": "any", "affine": "matrix"}
"""Columns of a request and their kinds; see `case_of_row`."""

_SIGNATURES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"\x1f\x8b": ".nii.gz"}
_STORED = (np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64)  # which every reader takes


def example_row() -> dict[str, object]:
    """A request that any machine can make: a whole NIfTI file of a few voxels."""
    ramp = np.arange(16**3, dtype=np.int16).reshape(16, 16, 16)
    return {"image": nib.Nifti1Image(ramp, np.eye(4)).to_bytes()}


def case_of_row(
    row: Mapping[str, Any], number: int, num_channels: int, folder: Path, *, classes: bool
) -> Case:
    """The case that a row describes.

    Args:
        row: One of `path` (what `clinseg predict` takes as an INPUT, on the machine that serves), `image`
            (the bytes of a NIfTI file, or for classes of a PNG or JPEG), and `array` with `affine`:
            `(I, J, K)`, or `(C, I, J, K)` of several channels, and voxel → world in RAS millimetres.
        number: Of the row, from 0.
        num_channels: Channels that the model needs.
        folder: Where files are put that did not come as such.
        classes: Whether the model is a classifier.

    Raises:
        InputError: If it is none of these, or not one case.
    """
    where = f"row {number}"
    given = {name: value for name, value in row.items() if name in INPUTS and _is_given(value)}
    forms = [name for name in ("path", "image", "array") if name in given]
    if len(forms) != 1:
        message = (
            f"a row has one of path, image (a file's bytes) and array, not {' and '.join(forms) or 'none'}"
        )
        raise InputError(Fault(where, "row-form", message))
    if "path" in given:
        path = Path(str(given["path"]))
    elif "image" in given:
        path = _write_file(given["image"], folder / f"row-{number}")
    else:
        path = _write_array(where, given["array"], given.get("affine"), folder / f"row-{number}.nii")
    cases = (find_class_inputs if classes else find_inputs)([path], num_channels)
    if len(cases) != 1:
        message = f"{path} holds {len(cases)} cases, and a row is one; give each a row of its own"
        raise InputError(Fault(where, "row-cases", message))
    return replace(cases[0], id=f"row-{number}", patient=f"row-{number}")


def _is_given(value: object) -> bool:
    """Whether a table has this value: in rows that lack a column it has NaN."""
    return value is not None and not (isinstance(value, float) and np.isnan(value))


def _write_file(content: bytes, stem: Path) -> Path:
    suffix = next((end for start, end in _SIGNATURES.items() if content.startswith(start)), ".nii")
    path = stem.with_name(stem.name + suffix)
    path.write_bytes(content)
    return path


def _write_array(where: str, values: object, affine: object, path: Path) -> Path:
    try:
        array = np.asarray(values)
        matrix = np.asarray(affine, dtype=np.float64)
    except (ValueError, TypeError):
        array, matrix = np.empty(0), np.empty(0)
    if array.ndim not in (3, 4) or array.dtype.kind not in "uifb" or matrix.shape != (4, 4):
        message = (
            "an array has the axes (I, J, K) or (C, I, J, K) and real numbers, and comes with its affine, 4 "
            "rows of 4 numbers from voxel to RAS millimetres; these have the shapes "
            f"{array.shape} and {matrix.shape}"
        )
        raise InputError(Fault(where, "row-array", message))
    stored = _storable(array)
    image = nib.Nifti1Image(np.moveaxis(stored, 0, -1) if stored.ndim == 4 else stored, matrix)
    image.set_sform(matrix, code=1)
    image.set_qform(None, code=0)
    path.write_bytes(image.to_bytes())
    return path


def _storable(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in a type that NIfTI readers take; the smallest that holds whole ones of 64 bits."""
    if array.dtype in _STORED:
        return array
    if array.dtype.kind == "f":
        return array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32)
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    kinds = (kind for kind in _STORED[:4] if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return array.astype(next(kinds, np.float64))
