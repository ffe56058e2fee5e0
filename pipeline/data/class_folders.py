"""Folders of images, found and named the same way for training, prediction and evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.dicom import list_dicom_files
from pipeline.data.images import series_name
from pipeline.data.nifti import is_nifti, nifti_stem
from pipeline.data.pictures import is_picture
from pipeline.errors import Fault, InputError

# Left out without a word, these would be cases that nobody misses; anything else (a README) is passed over.
_NOT_READ = (
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".webp",
    ".jp2",
    ".mha",
    ".mhd",
    ".nrrd",
    ".hdr",
    ".img",
    ".npz",
)


def is_image_file(path: Path) -> bool:
    """Whether the file's name is that of a NIfTI, PNG or JPEG file."""
    return is_nifti(path) or is_picture(path)


def find_images(folder: Path, num_levels: int) -> list[Path]:
    """Image files and folders of DICOM series in a folder, sorted by name; hidden ones are passed over.

    Args:
        folder: Where to look; if DICOM files lie in it directly, it is itself what is found.
        num_levels: How deep sub-folders that hold no series are searched.

    Raises:
        InputError: With all that cannot be read, or is an image of a kind that is not.
    """
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        is_series = bool(list_dicom_files(folder))
        found = [entry for entry in entries if is_image_file(entry) and entry.is_file()]
        folders = [entry for entry in entries if entry.is_dir()]
    except OSError as error:
        message = f"the folder cannot be read ({(error.strerror or 'error').lower()})"
        raise InputError(Fault(str(folder), "unreadable", message)) from error
    if is_series:
        if found:
            message = "both DICOM files and others lie in this folder; a DICOM series needs one of its own"
            raise InputError(Fault(str(folder), "mixed-formats", message))
        return [folder]
    faults = [
        Fault(str(entry), "file-type", "images are NIfTI, PNG or JPEG files, or DICOM series; convert it")
        for entry in entries
        if entry.suffix.lower() in _NOT_READ
    ]
    for inner in folders:
        try:
            found += _find_inside(inner, num_levels)
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(faults)
    return found


def _find_inside(folder: Path, num_levels: int) -> list[Path]:
    if num_levels > 0:
        return find_images(folder, num_levels - 1)
    if (found := find_images(folder, 0)) == [folder]:
        return found
    message = "it holds no DICOM series, and folders inside this one are not searched; move its images up"
    raise InputError(Fault(str(folder), "nested-folder", message))


def name_images(images: Sequence[Path]) -> list[tuple[str, Path]]:
    """A case id for each image: its name, after that of its folder where another image has the same."""
    stems = [_stem(image) for image in images]
    count = Counter(stems)
    return [
        (stem if count[stem] == 1 else f"{image.resolve().parent.name}-{stem}", image)
        for stem, image in zip(stems, images, strict=True)
    ]


def _stem(image: Path) -> str:
    if is_nifti(image):
        return nifti_stem(image)
    return image.stem if is_picture(image) else series_name(image)
