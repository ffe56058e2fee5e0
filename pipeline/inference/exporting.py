"""Masks in further forms: what cannot be made is told, and the mask stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipeline.errors import Fault, FaultError, IntegrityError, ResourceError
from pipeline.export.dicom_source import Source
from pipeline.export.dicom_sr import Answer, write_answer
from pipeline.export.exporters import EXPORTERS, REPORT, SEGMENTATION, export_path
from pipeline.export.prediction import Maker, Prediction
from pipeline.files import remove_files, sha256_of
from pipeline.inference.classifier import ClassReport


@dataclass(frozen=True, slots=True)
class Exports:
    """Forms besides NIfTI to write masks in.

    Attributes:
        forms: Keys of `EXPORTERS`.
        maker: What the files say that they were made by.
    """

    forms: tuple[str, ...]
    maker: Maker


def export(
    case: str, prediction: Prediction, folder: Path, forms: Sequence[str]
) -> tuple[dict[str, str], tuple[Fault, ...]]:
    """Writes a predicted case in further forms; one that cannot be written is not left as it was before.

    Returns:
        SHA-256 of each file by its form, and why others could not be written.

    Raises:
        ResourceError: If the disk is full or the folder cannot be written.
        IntegrityError: If a file read back is not what was predicted.
    """
    prediction = replace(prediction, probabilities=probabilities_path(folder, case))
    hashes: dict[str, str] = {}
    faults: list[Fault] = []
    for form in sorted(forms, key=list(EXPORTERS).index):  # what refers to others comes behind them
        path = export_path(folder, form, case)
        if wrong := _attempt(case, form, partial(EXPORTERS[form], path, prediction)):
            remove_files([path])
            faults += wrong
            continue
        hashes[form] = sha256_of(path)
        if form == SEGMENTATION:
            prediction = replace(prediction, segmentation=path)
    return hashes, tuple(faults)


def export_answer(
    report: ClassReport, classes: Sequence[str], source: Source, folder: Path, maker: Maker
) -> ClassReport:
    """Writes the answer for a case as a DICOM report, and tells in its own report what became of it.

    Raises:
        ResourceError: If the disk is full or the folder cannot be written.
        IntegrityError: If the file read back is not what was predicted.
    """
    path = export_path(folder, REPORT, report.case)
    shares = dict(zip(classes, report.probabilities, strict=True))
    answer = Answer(shares, report.predicted, report.confidence, report.review)
    if wrong := _attempt(report.case, REPORT, partial(write_answer, path, answer, source, maker)):
        return replace(report, faults=(*report.faults, *wrong))
    return replace(report, exports={REPORT: sha256_of(path)})


def _attempt(case: str, form: str, write: Callable[[], None]) -> tuple[Fault, ...]:
    """Writes, or tells why it cannot be."""
    try:
        write()
    except (ResourceError, IntegrityError):
        raise
    except FaultError as error:
        return tuple(error.faults)
    except Exception as error:  # a strict library fed with a scanner's headers may raise anything
        message = (
            f"{form} cannot be made of this series ({type(error).__name__}); what was predicted is written, "
            "check the series with a DICOM validator"
        )
        return (Fault(case, "not-exportable", message),)
    return ()


def probabilities_path(folder: Path, case: str) -> Path:
    """Where the probabilities of a case lie beside its mask in `folder`."""
    return folder / f"probabilities/{case}.nii"


def further_paths(folder: Path, case: str) -> list[Path]:
    """All that may lie beside the mask of a case in `folder`: it belongs to this mask and to no other."""
    return [probabilities_path(folder, case), *(export_path(folder, form, case) for form in EXPORTERS)]
