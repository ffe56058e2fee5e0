"""Label maps, images and maps of numbers as NIfTI files that lie exactly in place and say what they are."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Fault, IntegrityError
from pipeline.export.signature import COMMENT, UNREADABLE, open_plain
from pipeline.files import atomic_path
from pipeline.volume import Affine, Grid, check_grid

_LARGEST_LABEL = 65535


def write_label_map(
    path: Path, labels_array: NDArray[np.integer[Any]], grid: Grid, labels: Mapping[str, int]
) -> None:
    """Writes a label map that overlays its image in every viewer, and verifies it before it gets its name.

    sform, qform, their codes and pixdim are those of the grid, to the bit where the grid came from a NIfTI
    header. The voxel type is the smallest unsigned integer that holds every declared label, whether present
    or not; the names travel in a header extension. The same input gives the same bytes.

    Args:
        path: Ends in `.nii` or `.nii.gz`.
        labels_array: `(I, J, K)` whole numbers, axes as stored in the image; fastest in Fortran order.
        grid: The image's geometry.
        labels: Label name → value, background included.

    Raises:
        ValueError: If the array has another shape than the grid or a value that is not declared, the file's
            name or the labels do not fit the format, or the grid is none that a reader lets in.
        ResourceError: If the disk is full or the folder cannot be written.
        IntegrityError: If the file read back differs from what was written; there is no file then.
    """
    _check(path, labels_array, grid, labels)
    array = np.asfortranarray(labels_array, dtype=np.min_scalar_type(max(labels.values())))
    header = build_header(grid, array.dtype, {"labels": dict(labels)})
    header.set_intent("label")
    _write_verified(path, array, header)


def write_map(
    path: Path, values: NDArray[np.floating[Any]], grid: Grid, meaning: Mapping[str, str | float]
) -> None:
    """Writes a number per voxel as float32, with the geometry of its image and verified as a label map is.

    Args:
        path: Ends in `.nii` or `.nii.gz`.
        values: `(I, J, K)` finite numbers, axes as stored in the image; fastest in Fortran order.
        grid: The image's geometry.
        meaning: What the numbers are; goes into a header extension under `map`.

    Raises:
        ValueError: If the array has another shape than the grid or holds what is no number, the file's name
            does not fit the format, or the grid is none that a reader lets in.
        ResourceError: If the disk is full or the folder cannot be written.
        IntegrityError: If the file read back differs from what was written; there is no file then.
    """
    _check_numbers(path, values, grid, "f")
    array = np.asfortranarray(values, dtype=np.float32)
    _write_verified(path, array, build_header(grid, array.dtype, {"map": dict(meaning)}))


def write_image(path: Path, values: NDArray[Any], grid: Grid, meaning: Mapping[str, str]) -> None:
    """Writes an image in its own type, with a geometry and verified as a label map is.

    Args:
        path: Ends in `.nii` or `.nii.gz`.
        values: `(I, J, K)` finite numbers, whole or real; fastest in Fortran order.
        grid: Where they lie.
        meaning: Where the image comes from; goes into a header extension under `image`.

    Raises:
        ValueError: As of `write_map`.
        ResourceError: If the disk is full or the folder cannot be written.
        IntegrityError: If the file read back differs from what was written; there is no file then.
    """
    _check_numbers(path, values, grid, "fui")
    array = np.asfortranarray(values)
    _write_verified(path, array, build_header(grid, array.dtype, {"image": dict(meaning)}))


def _check(path: Path, array: NDArray[np.integer[Any]], grid: Grid, labels: Mapping[str, int]) -> None:
    _check_name(path)
    if array.shape != grid.shape or array.dtype.kind not in "ui":
        raise ValueError(
            f"a label map on this grid has whole numbers of shape {grid.shape}, "
            f"not {array.dtype} of {array.shape}"
        )
    values = list(labels.values())
    if not values or min(values) < 0 or max(values) > _LARGEST_LABEL:
        raise ValueError(f"label values lie between 0 and {_LARGEST_LABEL}, not {dict(labels)}")
    declared = np.zeros(max(values) + 1, dtype=bool)
    declared[values] = True
    # Slice by slice: used as an index, a whole array would be copied at eight bytes a voxel.
    if (
        array.min() < 0
        or array.max() >= declared.size
        or not all(declared[plane].all() for plane in np.moveaxis(array, -1, 0))
    ):
        undeclared = sorted(set(np.unique(array).tolist()) - set(values))
        raise ValueError(f"the array holds values that no label declares: {undeclared[:10]}")


def _check_numbers(path: Path, values: NDArray[Any], grid: Grid, kinds: str) -> None:
    _check_name(path)
    if values.shape != grid.shape or values.dtype.kind not in kinds or not np.isfinite(values).all():
        raise ValueError(
            f"a map on this grid has finite numbers of shape {grid.shape}, "
            f"not {values.dtype} of {values.shape}"
        )


def _check_name(path: Path) -> None:
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"a NIfTI file ends in .nii or .nii.gz, not {path.name}")


def build_header(
    grid: Grid, dtype: np.dtype[Any], meaning: Mapping[str, Any], num_frames: int | None = None
) -> nib.Nifti1Header:
    """A header with exactly the geometry of a grid.

    Args:
        grid: The geometry.
        dtype: Of the voxels.
        meaning: What values or frames are called; goes into an extension as JSON.
        num_frames: Volumes along a fourth axis; None for a three-dimensional file.

    Raises:
        InputError: If the grid is none that a reader would let in.
        ValueError: If no header can express it.
    """
    check_grid("what is to be written", grid)
    header = nib.Nifti1Header()
    header.set_data_shape(grid.shape if num_frames is None else (*grid.shape, num_frames))
    header.set_data_dtype(dtype)
    header.set_xyzt_units("mm")
    header.set_slope_inter(None, None)
    _set_geometry(header, grid)
    if not Grid(grid.shape, header.get_best_affine()).is_close(grid):
        raise ValueError("the grid's sform and qform cannot express its affine")
    content = json.dumps({"clinseg": meaning}).encode()
    header.extensions.append(nib.nifti1.Nifti1Extension(COMMENT, content))
    return header


def _set_geometry(header: nib.Nifti1Header, grid: Grid) -> None:
    """Gives the header the grid's forms; where a code is given without its form, the affine is the form."""
    header["pixdim"][1:4] = grid.spacing
    if not grid.sform_code and not grid.qform_code:
        return  # readers make up an affine from pixdim and shape; its spacing gives the same pixdim back
    if grid.sform_code:
        header.set_sform(grid.affine if grid.sform is None else grid.sform, grid.sform_code)
    if grid.qform_code:
        header.set_qform(grid.affine if grid.qform is None else grid.qform, grid.qform_code)
        if grid.quaternion is not None:
            header["quatern_b"], header["quatern_c"], header["quatern_d"] = grid.quaternion
    if grid.pixdim is not None:
        qfac, *stored = grid.pixdim
        header["pixdim"][0] = qfac
        # The third may hold anything in a two-dimensional image.
        header["pixdim"][1:4] = np.where(np.isfinite(stored) & (np.array(stored) > 0), stored, grid.spacing)


def _write_verified(path: Path, array: NDArray[Any], header: nib.Nifti1Header) -> None:
    content = nib.Nifti1Image(array, None, header).to_bytes()
    with atomic_path(path) as temporary:
        _write(temporary, content)
        if not _is_written(temporary, content, array, header.get_best_affine()):
            message = "read back from disk, the file is not what was written; it was removed, check the disk"
            raise IntegrityError(Fault(str(path), "write-not-verified", message))


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        if path.suffix == ".gz":
            # Level 1 is fast, and label maps shrink well anyway; neither name nor time go into the file.
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as compressed:
                compressed.write(content)
        else:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _is_written(path: Path, content: bytes, array: NDArray[Any], affine: Affine) -> bool:
    """Whether the file, read to its end with gzip's checksum, gives this content, array and affine."""
    try:
        with open_plain(path) as file:
            found = file.read()
    except UNREADABLE:
        return False
    if found != content:
        return False
    image = nib.Nifti1Image.from_bytes(found)
    voxels = np.asanyarray(image.dataobj)
    is_same = voxels.dtype == array.dtype and np.array_equal(voxels, array)
    return is_same and np.array_equal(image.affine, affine)
