"""The forms besides NIfTI in which a label map leaves, each with the folder that it lies in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pipeline.export.dicom_seg import write_fractional_segmentation, write_segmentation
from pipeline.export.dicom_source import Prediction
from pipeline.export.rtstruct import write_structure_set

EXPORTERS: Final[Mapping[str, Callable[[Path, Prediction], None]]] = {
    "dicom-seg": write_segmentation,
    "dicom-seg-fractional": write_fractional_segmentation,
    "rtstruct": write_structure_set,
}
"""By the name on the command line and of the folder: `DIR/<name>/<case>.dcm`."""
NEED_PROBABILITIES: Final = frozenset({"dicom-seg-fractional"})
"""Those that are made of probabilities instead of labels."""


def export_path(folder: Path, form: str, case: str) -> Path:
    """Where a case lies in that form, beside its mask in `folder`."""
    return folder / form / f"{case}.dcm"
