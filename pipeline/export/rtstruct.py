"""DICOM RT Structure Sets: a region of interest for each structure, as closed contours on the slices."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from pipeline.errors import Fault, IntegrityError
from pipeline.export.contours import Polygon, fill, outline
from pipeline.export.dicom_source import Slice, clean_text, lps_affine, refer
from pipeline.export.prediction import Prediction
from pipeline.export.signature import MANUFACTURER
from pipeline.files import atomic_path
from pipeline.terminology import CATEGORIES, SIDES, Code, Term

_SERIES_NUMBER = 9003
_STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"
"""What a referenced study is said to be (PS3.3 C.8.8.5), though the class itself is retired."""
_ON_PLANE = 0.02
"""Voxels by which a contour, read back, may lie beside its slice."""


def write_structure_set(path: Path, prediction: Prediction) -> None:
    """Writes a structure set and verifies it before it gets its name.

    Filled again, the contours have to give the very voxels of the label map. A structure without voxels is
    there without contours. The same prediction has the same UIDs.

    Raises:
        ResourceError: If the disk is full or the folder cannot be written.
        IntegrityError: If the contours, read back, enclose other voxels; there is no file then.
    """
    dataset = _build(prediction)
    with atomic_path(path) as temporary:
        with warnings.catch_warnings(action="ignore"):  # pydicom quotes the values it warns about
            dataset.save_as(temporary, enforce_file_format=True)
            found = dcmread(temporary)
        if not _is_placed(found, prediction):
            message = "read back, the contours do not enclose the label map; they were removed, this is a bug"
            raise IntegrityError(Fault(str(path), "write-not-verified", message))


def _build(prediction: Prediction) -> Dataset:
    source, maker, now = prediction.source, prediction.maker, datetime.now().astimezone()
    meta = FileMetaDataset()
    # A contour may be longer than the 64 KiB that an explicit VR leaves for numbers in text.
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = prediction.uid("structure set")
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    source.describe(dataset)
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    dataset.Modality, dataset.SeriesNumber = "RTSTRUCT", _SERIES_NUMBER
    dataset.SeriesInstanceUID = prediction.uid("structure set series")
    dataset.SeriesDescription = clean_text(f"Contours by {maker.name}", 64)
    dataset.OperatorsName = None
    dataset.InstanceNumber = 1
    dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURER, clean_text(maker.name, 64)
    dataset.SoftwareVersions = clean_text(maker.version, 64)
    dataset.FrameOfReferenceUID = source.first.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = source.first.get("PositionReferenceIndicator") or None
    dataset.StructureSetLabel = "AUTOMATIC"
    dataset.StructureSetDescription = "Automatic segmentation, not reviewed"
    dataset.StructureSetDate, dataset.StructureSetTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.ReferencedFrameOfReferenceSequence = [_reference_series(prediction)]
    terms = prediction.contract.terms
    dataset.StructureSetROISequence = [_name(n, name, prediction) for n, name in enumerate(terms, 1)]
    dataset.ROIContourSequence = [_draw(n, *item, prediction) for n, item in enumerate(terms.items(), 1)]
    dataset.RTROIObservationsSequence = [_observe(n, *item) for n, item in enumerate(terms.items(), 1)]
    return dataset


def _reference_series(prediction: Prediction) -> Dataset:
    source, series, study, frame = prediction.source, Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.first.SeriesInstanceUID
    series.ContourImageSequence = [refer(header) for header in source.headers]
    study.ReferencedSOPClassUID = _STUDY_COMPONENT
    study.ReferencedSOPInstanceUID = source.first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = source.first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _name(number: int, name: str, prediction: Prediction) -> Dataset:
    item = Dataset()
    item.ROINumber = number
    item.ReferencedFrameOfReferenceUID = prediction.source.first.FrameOfReferenceUID
    item.ROIName = clean_text(name, 64)
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    return item


def _draw(number: int, name: str, term: Term, prediction: Prediction) -> Dataset:
    item, affine = Dataset(), lps_affine(prediction.grid)
    item.ReferencedROINumber = number
    item.ROIDisplayColor = list(bytes.fromhex((term.colour or "#FFFFFF")[1:]))
    contours = []
    for plane in range(prediction.grid.shape[2]):
        mask = prediction.mask(name, plane)
        image = prediction.source.planes.get(plane)
        contours += [_contour(polygon, plane, affine, image) for polygon in outline(mask) if mask.any()]
    if contours:
        item.ContourSequence = contours
    return item


def _contour(polygon: Polygon, plane: int, affine: NDArray[np.float64], image: Slice | None) -> Dataset:
    item = Dataset()
    if image is not None:
        item.ContourImageSequence = [image.refer()]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(polygon)
    voxels = np.column_stack([polygon, np.full(len(polygon), plane)])
    points = voxels @ affine[:3, :3].T + affine[:3, 3]
    item.ContourData = [_decimal(value) for value in points.ravel()]
    return item


def _decimal(value: float) -> str:
    """A tenth of a micrometre, in at most the 16 characters that a number in DICOM may have."""
    text = f"{value:.4f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _observe(number: int, name: str, term: Term) -> Dataset:
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.ROIObservationLabel = clean_text(name, 16)
    item.RTROIInterpretedType = "ORGAN" if term.category == "anatomy" else None
    item.ROIInterpreter = None
    item.SegmentedPropertyCategoryCodeSequence = [_code(CATEGORIES[term.category])]
    identification = _code(term.code)
    if term.side is not None:
        identification.SegmentedPropertyTypeModifierCodeSequence = [_code(SIDES[term.side])]
    item.RTROIIdentificationCodeSequence = [identification]
    return item


def _code(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item


def _is_placed(found: Dataset, prediction: Prediction) -> bool:
    """Whether the contours of every structure enclose its voxels, no more and no less."""
    names = list(prediction.contract.structures)
    if [int(item.ReferencedROINumber) for item in found.ROIContourSequence] != list(range(1, len(names) + 1)):
        return False
    columns, rows, num_planes = prediction.grid.shape
    for name, item in zip(names, found.ROIContourSequence, strict=True):
        planes: dict[int, NDArray[np.bool_]] = {}
        for polygon, depth in _polygons(item, prediction):
            plane = round(depth)
            if abs(depth - plane) > _ON_PLANE or not 0 <= plane < num_planes:
                return False
            filled = fill(polygon, (rows, columns))
            planes[plane] = planes[plane] ^ filled if plane in planes else filled
        for plane in range(num_planes):
            expected = prediction.mask(name, plane)
            if not np.array_equal(planes.get(plane, np.zeros_like(expected)), expected):
                return False
    return True


def _polygons(item: Dataset, prediction: Prediction) -> Iterator[tuple[Polygon, float]]:
    """Each contour in voxels, with the plane that it lies on; -1 where it lies on none."""
    to_voxel = np.linalg.inv(lps_affine(prediction.grid))
    for contour in item.get("ContourSequence") or []:
        points = np.array([float(value) for value in contour.ContourData]).reshape(-1, 3)
        voxels = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        depth = float(voxels[:, 2].mean())
        yield voxels[:, :2], depth if np.ptp(voxels[:, 2]) <= _ON_PLANE else -1.0
