"""`clinseg deidentify`: images without what identifies their patients."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.cases import exists
from pipeline.data.dicom import find_dicom_files
from pipeline.data.nifti import is_nifti
from pipeline.errors import ConfigError, Fault, InputError
from pipeline.files import check_writable
from pipeline.privacy import Pseudonyms, clean_dicom, clean_nifti, read_key
from pipeline.progress import progress_bar


@dataclass(frozen=True, slots=True)
class Deidentification:
    """What came of it.

    Attributes:
        num_files: Written; copies of one image count once.
        num_patients: Pseudonyms among them.
        warnings: What a person should look at, a line per series.
        faults: What was left out, and why.
    """

    num_files: int
    num_patients: int
    warnings: list[Fault]
    faults: list[Fault]


def deidentify(source: Path, folder: Path, key: Path) -> Deidentification:
    """Writes every image of `source` to `folder` without what identifies its patient.

    DICOM goes to `<patient>/<series>/<image>.dcm`, all three pseudonyms; NIfTI to `nifti/<pseudonym>.nii.gz`.

    Args:
        source: A folder, searched with all inside it, a DICOMDIR or a file.
        folder: Where the images go; empty, or not there yet.
        key: The secret key's file, made if it is not there; never inside `folder`.

    Raises:
        FaultError: If there is nothing to do, or no place to do it.
    """
    _refuse_places(source, folder, key)
    files = _find(source)
    pseudonyms = Pseudonyms(read_key(key))
    check_writable(folder)
    faults: list[Fault] = []
    patients: set[str] = set()
    doubts: Counter[tuple[str, str, str]] = Counter()
    written: set[Path] = set()
    with progress_bar("De-identifying", len(files)) as advance:
        for path in files:
            try:
                if is_nifti(path):
                    name = pseudonyms.file_name(
                        str(path.relative_to(source) if source.is_dir() else path.name)
                    )
                    suffix = ".nii.gz" if path.suffix.lower() == ".gz" else ".nii"
                    clean_nifti(path, folder / "nifti" / f"{name}{suffix}")
                    written.add(folder / "nifti" / f"{name}{suffix}")
                else:
                    cleaned = clean_dicom(path, folder, pseudonyms)
                    patients.add(cleaned.file.parts[-3])
                    written.add(cleaned.file)
                    doubts.update((str(cleaned.file.parent), *doubt) for doubt in cleaned.warnings)
            except InputError as error:
                faults += error.faults
            advance()
    warnings = [
        Fault(where, rule, f"{message} ({count} images)") for (where, rule, message), count in doubts.items()
    ]
    return Deidentification(len(written), len(patients), warnings, faults)


def _refuse_places(source: Path, folder: Path, key: Path) -> None:
    if not exists(source):
        raise InputError(Fault(str(source), "missing-file", "no such file or folder; check the path"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        message = "images go to an empty folder, so that nothing old lies among them; choose another"
        raise ConfigError(Fault(str(folder), "not-empty", message))
    inside, outside = folder.resolve(), source.resolve()
    if inside in key.resolve().parents:
        message = "with the key beside them the pseudonyms are none; keep it where the images do not go"
        raise ConfigError(Fault(str(key), "key", message))
    if inside == outside or outside in inside.parents:
        message = "the images cannot go to where they come from; choose another folder"
        raise ConfigError(Fault(str(folder), "would-overwrite", message))


def _find(source: Path) -> list[Path]:
    if is_nifti(source) and source.is_file():
        return [source]
    files = find_dicom_files(source)
    if source.is_dir():
        files += sorted(path for path in source.rglob("*") if is_nifti(path) and path.is_file())
    if not files:
        raise InputError(Fault(str(source), "no-images", "neither DICOM nor NIfTI files lie here"))
    return files
