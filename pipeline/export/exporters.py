"""The forms besides NIfTI in which a label map leaves, each with the folder that it lies in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pipeline.export.dicom_seg import write_fractional_segmentation, write_segmentation
from pipeline.export.dicom_sr import write_measurements
from pipeline.export.prediction import Prediction
from pipeline.export.rtstruct import write_structure_set

SEGMENTATION: Final = "dicom-seg"
REPORT: Final = "dicom-sr"
"""Measurements of masks, which refer to the segmentation where there is one; of a classifier its answers."""
EXPORTERS: Final[Mapping[str, Callable[[Path, Prediction], None]]] = {
    SEGMENTATION: write_segmentation,
    "dicom-seg-fractional": write_fractional_segmentation,
    "rtstruct": write_structure_set,
    REPORT: write_measurements,
}
"""By the name on the command line and of the folder: `DIR/<name>/<case>.dcm`."""
NEED_PROBABILITIES: Final = frozenset({"dicom-seg-fractional"})
"""Those that are made of probabilities instead of labels."""


def export_path(folder: Path, form: str, case: str) -> Path:
    """Where a case lies in that form, beside its mask in `folder`."""
    return folder / form / f"{case}.dcm"
