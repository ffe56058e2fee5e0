"""`clinseg series`: which DICOM series an input holds."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.cases import exists
from pipeline.data.dicom import Stack, find_dicom_files, list_series
from pipeline.errors import Fault, InputError
from pipeline.progress import progress_bar


def list_all_series(path: Path) -> list[Stack]:
    """Every stack of slices in a folder, a DICOMDIR or a file, with the reason if it cannot be a volume.

    Raises:
        InputError: If there is no DICOM file.
    """
    if not exists(path):
        raise InputError(Fault(str(path), "missing-file", "no such file or folder; check the path"))
    files = find_dicom_files(path)
    with progress_bar("Reading headers", len(files)) as advance:
        return list_series(path, files, advance)
