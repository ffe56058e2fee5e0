"""What a DICOM file holds: its slices, each with geometry and meaning, or why it has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MARKS = {
    "TemporalPositionIndex": "time",
    "TemporalPositionIdentifier": "time",
    "EffectiveEchoTime": "echo time",
    "EchoTime": "echo time",
    "DiffusionBValue": "b-value",
    "DiffusionGradientOrientation": "gradient",
    "FrameType": "type",
    "ImageType": "type",
    "ComplexImageComponent": "component",
    "InversionTime": "inversion time",
    "TriggerTime": "trigger time",
    "FrameAcquisitionNumber": "acquisition",
    "AcquisitionNumber": "acquisition",
    "AcquisitionTime": "acquisition time",
}
"""Tags by which images at one place are told apart, most telling first, and what they are called."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice, in LPS millimetres.

    Attributes:
        path: The file it lies in.
        index: Its number in that file, from 0.
        name: The file's name, with the frame's number where there are several.
        size: Columns and rows.
        spacing: Millimetres between columns and between rows.
        orientation: `(2, 3)`: the directions along a row and along a column.
        position: Centre of the first pixel.
        rescale: Slope and intercept.
        stack: The stack that the file puts it into; empty if it names none.
        marks: What tells it from others at the same place, by the tag's name.
        is_inverted: Whether low values are to be shown white (MONOCHROME1); the values are what they are.
    """

    path: Path
    index: int
    name: str
    size: tuple[int, int]
    spacing: tuple[float, float]
    orientation: NDArray[np.float64]
    position: NDArray[np.float64]
    rescale: tuple[float, float]
    stack: str
    marks: Mapping[str, str]
    is_inverted: bool = False

    @property
    def normal(self) -> NDArray[np.float64]:
        """Direction in which slices follow each other."""
        return np.cross(*self.orientation)


@dataclass(frozen=True, eq=False)
class Header:
    """One file.

    Attributes:
        path: Where it lies.
        series: SeriesInstanceUID; empty if the file tells none, or cannot be read.
        modality: Such as CT.
        description: Of the series, by whoever took it.
        number: Of the series in the study.
        frames: Its slices; none if there are problems.
        problems: Rule and message of everything that keeps it from being slices.
    """

    path: Path
    series: str = ""
    modality: str = ""
    description: str = ""
    number: str = ""
    frames: tuple[Frame, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()


def tell_names(names: Iterable[str]) -> str:
    """Up to three names of files, the only part of a path or file that messages show."""
    known = list(dict.fromkeys(names))
    told = ", ".join(known[:3])
    return told if len(known) <= 3 else f"{told} and {len(known) - 3} more"


def mark_name(tag: str) -> str:
    """What a mark is called, in words."""
    return MARKS[tag]
