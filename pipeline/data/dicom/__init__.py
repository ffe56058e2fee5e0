"""DICOM: series sorted, chosen by rule, checked strictly by their tags, decoded, and placed in the patient.

Readers in wide use return a wrong volume without a word for a series with a missing, doubled or foreign
slice. Here nothing is read whose slices do not make one regular grid, unless resampling is asked for.

finding (which files) → headers, functional_groups (what they say) → frames (their slices) → stacks, placing
(which belong together, and where) → choosing (which is meant) → pixels, regularising → reading.
"""

from pipeline.data.dicom.choosing import SeriesRule, match_series
from pipeline.data.dicom.finding import find_dicom_files, holds_dicom, is_dicom, list_dicom_files
from pipeline.data.dicom.reading import list_series, read_series, series_files, series_frames, series_hash
from pipeline.data.dicom.stacks import Stack

__all__ = [
    "SeriesRule",
    "Stack",
    "find_dicom_files",
    "holds_dicom",
    "is_dicom",
    "list_dicom_files",
    "list_series",
    "match_series",
    "read_series",
    "series_files",
    "series_frames",
    "series_hash",
]
