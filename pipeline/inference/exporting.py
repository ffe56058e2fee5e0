"""Masks in further forms: what cannot be made is told, and the mask stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import Fault, IntegrityError, ResourceError
from pipeline.export.dicom_source import Maker, Prediction
from pipeline.export.exporters import EXPORTERS, export_path
from pipeline.files import sha256_of


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
    """Writes a predicted case in further forms.

    Returns:
        SHA-256 of each file by its form, and why others could not be written.

    Raises:
        ResourceError: If the disk is full or the folder cannot be written.
        IntegrityError: If a file read back is not what was predicted.
    """
    prediction = replace(prediction, probabilities=probabilities_path(folder, case))
    hashes, faults = {}, []
    for form in forms:
        path = export_path(folder, form, case)
        try:
            EXPORTERS[form](path, prediction)
        except (ResourceError, IntegrityError):
            raise
        except Exception as error:  # a strict library fed with a scanner's headers may raise anything
            message = (
                f"{form} cannot be made of this series ({type(error).__name__}); its NIfTI mask is "
                "written, check the series with a DICOM validator"
            )
            faults.append(Fault(case, "not-exportable", message))
            continue
        hashes[form] = sha256_of(path)
    return hashes, tuple(faults)


def probabilities_path(folder: Path, case: str) -> Path:
    """Where the probabilities of a case lie beside its mask in `folder`."""
    return folder / f"probabilities/{case}.nii"
