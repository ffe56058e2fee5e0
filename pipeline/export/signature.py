"""What files of ours say of themselves: by it they are known again, and their labels are named."""

from __future__ import annotations

import gzip
import io
import json
import warnings
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import nibabel as nib
import pydicom
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from pipeline.errors import Fault, InputError

COMMENT: Final = 6
"""NIfTI's code of a header extension in plain text."""
MANUFACTURER: Final = "clinseg"
"""What DICOM objects of ours say that they were made by."""
UNREADABLE: Final = (OSError, EOFError, zlib.error)
_MEANING_WITHIN = 2**20  # bytes at the beginning of a file in which its meaning is looked for
_NOT_NIFTI = (ImageFileError, HeaderDataError, WrapStructError)


def read_label_names(path: Path) -> dict[str, int] | None:
    """The label names that a file written by `nifti.write_label_map` carries; None if it carries none.

    Reads no more than the file's first megabyte.

    Raises:
        InputError: If the file cannot be read.
    """
    try:
        meanings = _read_meanings(path)
    except UNREADABLE as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        message = f"the label map cannot be read ({reason}); check the path, or copy the file again"
        raise InputError(Fault(str(path), "unreadable", message)) from error
    return next((labels for meaning in meanings if (labels := _labels(meaning)) is not None), None)


def is_ours(path: Path) -> bool:
    """Whether a NIfTI or DICOM file says that this program wrote it; what others save does not say so."""
    if not path.name.endswith((".nii", ".nii.gz", ".dcm")):
        return False
    try:
        if path.suffix == ".dcm":
            told = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Manufacturer"])
            return bool(told.get("Manufacturer") == MANUFACTURER)
        return bool(_read_meanings(path))
    except Exception:  # pydicom raises anything of a damaged file, and that is none that we wrote
        return False


def open_plain(path: Path) -> BinaryIO:
    """Opens a `.nii` or `.nii.gz` for its bytes, without the compression."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _read_meanings(path: Path) -> list[dict[str, Any]]:
    """What `nifti.build_header` put into a file's header; nothing where that was another."""
    with open_plain(path) as file:
        start = file.read(_MEANING_WITHIN)
    try:
        with warnings.catch_warnings(action="ignore"):  # nibabel warns of what it then refuses
            extensions = nib.Nifti1Header.from_fileobj(io.BytesIO(start)).extensions
    except _NOT_NIFTI:
        return []
    found: list[dict[str, Any]] = []
    for extension in extensions:
        with suppress(LookupError, TypeError, ValueError, RecursionError):
            if extension.get_code() == COMMENT:
                found.append(dict(json.loads(extension.content)["clinseg"]))
    return found


def _labels(meaning: Mapping[str, Any]) -> dict[str, int] | None:
    labels = meaning.get("labels")
    is_contract = isinstance(labels, dict) and all(type(value) is int for value in labels.values())
    return labels if is_contract else None
