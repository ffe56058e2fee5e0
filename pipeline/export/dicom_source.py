"""The series that a DICOM object was made from: whose it is, and which of its slices lie on the grid.

Objects go to the archive that the images came from, so they name the same patient and study, in the very
words of the images. That is the only place where a name is taken over; it goes into no log and no report.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.valuerep import DS

from pipeline.errors import Fault, InputError
from pipeline.volume import Affine, Grid

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_ON_GRID = 0.02
"""Voxels by which a slice of the series may lie beside a plane of the grid and still be that plane."""

# Type 1 in what is written, type 1 in images too, and yet not always there.
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_EMPTY_IF_MISSING = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
"""Type 2 of the modules Patient and General Study."""
_IDENTITY = (
    *_EMPTY_IF_MISSING,
    "IssuerOfPatientID",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "StudyInstanceUID",
    "StudyDescription",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
)
_GEOMETRY = (
    "Rows",
    "Columns",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "NumberOfFrames",
    "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence",
)
_READ = ("SpecificCharacterSet", "Modality", "SeriesNumber", "PositionReferenceIndicator")


@dataclass(frozen=True, eq=False)
class Slice:
    """A slice of a series.

    Attributes:
        header: Of its file.
        position: Of its first pixel, as the header says it.
        frame: Its number in the file, from 1; None where the file is one slice.
    """

    header: Dataset
    position: tuple[float, ...]
    frame: int | None = None

    def refer(self) -> Dataset:
        """An item that refers to it."""
        item = refer(self.header)
        if self.frame is not None:
            item.ReferencedFrameNumber = self.frame
        return item


@dataclass(frozen=True, eq=False)
class Source:
    """A series, without its pixels.

    Attributes:
        headers: Of every file.
        planes: Slices that are a plane of the grid, by its index.
    """

    headers: tuple[Dataset, ...]
    planes: Mapping[int, Slice]

    @property
    def first(self) -> Dataset:
        """A header for what all have in common."""
        return self.headers[0]

    def describe(self, target: Dataset) -> None:
        """Gives a new object patient and study of the series, word for word, as UTF-8."""
        target.SpecificCharacterSet = "ISO_IR 192"
        for keyword in _IDENTITY:
            if keyword in self.first:
                target[keyword] = self.first[keyword]
        for keyword in _EMPTY_IF_MISSING:
            if keyword not in target:
                setattr(target, keyword, None)

    def stand_ins(self, step: float) -> list[Dataset]:
        """The headers with nothing in them that a strict library could stumble over: geometry and references.

        Args:
            step: Millimetres between slices, as measured; what a header says of it need not be true.
        """
        first = self.first
        alike = [h for h in self.headers if (h.Rows, h.Columns) == (first.Rows, first.Columns)]
        return [_stand_in(header, step) for header in alike]

    def evidence(self) -> list[Dataset]:
        """The headers as what they are referred to by, and nothing else."""
        return [_identify(header) for header in self.headers]


def read_source(
    where: str, files: Sequence[Path], grid: Grid | None, frames: Mapping[Path, Collection[int]] | None = None
) -> Source:
    """Reads the headers of a series whose voxels lie on `grid`.

    Args:
        where: What faults name.
        files: Of one series.
        grid: As the series was read; None where nothing is to lie in the patient, so that projections, which
            have no frame of reference, can be referred to.
        frames: Those of each file that were read, by their numbers from 0; None for all.

    Raises:
        InputError: If the series cannot be referred to: a UID that every image has is missing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom quotes the values it warns about
        try:
            headers = tuple(
                dcmread(path, specific_tags=[*_NEEDED, *_IDENTITY, *_GEOMETRY, *_READ]) for path in files
            )
            for header in headers:
                header.decode()
        except Exception as error:  # a parser fed with damaged bytes may raise anything
            message = "a header of the series cannot be read; fetch the series again from its source"
            raise InputError(Fault(where, "unreadable", message)) from error
    needed = [name for name in _NEEDED if grid is not None or name != "FrameOfReferenceUID"]
    missing = {name: sum(not header.get(name) for header in headers) for name in needed}
    faults = [
        Fault(
            where,
            "missing-tag",
            f"{name} is missing in {num} of {len(headers)} files; a DICOM object could not refer to them",
        )
        for name, num in missing.items()
        if num
    ]
    if faults:
        raise InputError(faults)
    chosen = [None if frames is None else frames.get(path, ()) for path in files]
    return Source(headers, _planes(headers, grid, chosen) if grid is not None else {})


def refer(header: Dataset) -> Dataset:
    """An item that refers to a file."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item


def clean_text(text: str, length: int) -> str:
    """A text that a DICOM value can hold: printable, no backslash, at most so many characters."""
    kept = "".join(c if c.isprintable() and c != "\\" else " " for c in text)
    return " ".join(kept.split())[:length].strip() or "unnamed"


def lps_affine(grid: Grid) -> Affine:
    """Voxel → world in DICOM's coordinates: millimetres to the left, back and head."""
    return _LPS_TO_RAS @ grid.affine


def _planes(
    headers: Sequence[Dataset], grid: Grid, frames: Sequence[Collection[int] | None]
) -> dict[int, Slice]:
    """Slices that are planes of the grid; of resampled ones, only those that stayed as they are."""
    to_voxel = np.linalg.inv(lps_affine(grid))
    columns, rows, num_planes = grid.shape
    planes = {}
    for header, chosen in zip(headers, frames, strict=True):
        if (header.Columns, header.Rows) != (columns, rows):
            continue
        for image in _slices(header, chosen):
            i, j, k = (to_voxel @ (*image.position, 1))[:3]
            plane = round(float(k))
            if max(abs(i), abs(j), abs(k - plane)) < _ON_GRID and 0 <= plane < num_planes:
                planes[plane] = image
    return planes


def _slices(header: Dataset, chosen: Collection[int] | None) -> Iterator[Slice]:
    """The slices of a file, with the numbers of their frames where it has functional groups."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    if not per_frame:
        if "ImagePositionPatient" in header:
            yield Slice(header, tuple(map(float, header.ImagePositionPatient)))
        return
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for index, groups in enumerate(per_frame):
        place = groups.get("PlanePositionSequence") or shared.get("PlanePositionSequence")
        if place and (chosen is None or index in chosen):
            yield Slice(header, tuple(map(float, place[0].ImagePositionPatient)), index + 1)


def _identify(header: Dataset) -> Dataset:
    copy = Dataset()
    for keyword in _NEEDED:
        if keyword in header:
            copy[keyword] = header[keyword]
    for keyword in _EMPTY_IF_MISSING:
        setattr(copy, keyword, None)
    return copy


def _stand_in(header: Dataset, step: float) -> Dataset:
    copy = Dataset()
    copy.SliceThickness = DS(step, auto_format=True)
    for keyword in (*_NEEDED, *_GEOMETRY, "Modality"):
        if keyword in header and not header[keyword].is_empty:
            copy[keyword] = header[keyword]
    copy.SpacingBetweenSlices = DS(step, auto_format=True)
    for keyword in _EMPTY_IF_MISSING:
        setattr(copy, keyword, None)
    return copy
