"""Which files an input of DICOM stands for: a folder with all inside it, a DICOMDIR, or one file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pydicom import dcmread
from pydicom.uid import MediaStorageDirectoryStorage

from pipeline.errors import Fault, InputError

_DIRECTORY = "DICOMDIR"


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by suffix or magic number; what cannot be read is not."""
    if path.suffix.lower() == ".dcm":
        return True  # even without the magic number: a slice that was cut short must not go unnoticed
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def list_dicom_files(folder: Path) -> list[Path]:
    """DICOM files that lie directly in the folder, sorted; hidden ones and DICOMDIR are left out."""
    return sorted(path for path in folder.iterdir() if _is_candidate(path) and is_dicom(path))


def holds_dicom(folder: Path) -> bool:
    """Whether a DICOM file lies anywhere inside the folder."""
    return next(_walk(folder), None) is not None


def find_dicom_files(path: Path) -> list[Path]:
    """The DICOM files that `path` stands for, sorted.

    Args:
        path: A folder, searched with all inside it (links to folders are not followed), a DICOMDIR, which
            names its files, or one file.

    Raises:
        InputError: If it cannot be read, or a DICOMDIR names files that are missing or lie outside.
    """
    where = str(path)
    try:
        if path.is_dir():
            return sorted(_walk(path))
        return _listed(path) if path.name.upper().startswith(_DIRECTORY) else [path]
    except OSError as error:
        message = f"it cannot be read ({(error.strerror or 'error').lower()})"
        raise InputError(Fault(where, "unreadable", message)) from error


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(root, name)
            if _is_candidate(path) and is_dicom(path):
                yield path


def _is_candidate(path: Path) -> bool:
    return not path.name.startswith(".") and path.name.upper() != _DIRECTORY and path.is_file()


def _listed(directory: Path) -> list[Path]:
    """The files that a DICOMDIR names (DICOM PS3.10), none of them outside of its folder."""
    where = str(directory)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom quotes the values it warns about
            content = dcmread(directory, specific_tags=["DirectoryRecordSequence"])
            if content.file_meta.MediaStorageSOPClassUID != MediaStorageDirectoryStorage:
                return [directory]
            names = [
                record.ReferencedFileID
                for record in content.get("DirectoryRecordSequence") or ()
                if "ReferencedFileID" in record
            ]
    except OSError:
        raise
    except Exception as error:  # a parser fed with damaged bytes may raise anything
        raise InputError(Fault(where, "unreadable", "the DICOMDIR is damaged; name its folder")) from error
    parts = [[name] if isinstance(name, str) else list(name) for name in names]
    if any(not part or set(part) & {"", ".", ".."} or "/" in "".join(part) for part in parts):
        message = "it names files outside of its folder; name the folder itself instead"
        raise InputError(Fault(where, "dicomdir", message))
    paths = [directory.parent.joinpath(*part) for part in parts]
    if missing := [path for path in paths if not path.is_file()]:
        told = ", ".join(
            str(PurePosixPath(*path.relative_to(directory.parent).parts)) for path in missing[:3]
        )
        message = f"it names {len(missing)} files that are not there, such as {told}; copy the whole medium"
        raise InputError(Fault(where, "dicomdir", message))
    return sorted(dict.fromkeys(paths))
