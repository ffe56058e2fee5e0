"""What one DICOM file says about its images, read from its header and judged.

Patient and study tags are never parsed, and no message carries more of a file than its name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pipeline.data.dicom.frames import MARKS, Frame, Header
from pipeline.data.dicom.functional_groups import GROUP_TAGS, frame_datasets, has_functional_groups

_FILE_TAGS = ("SeriesInstanceUID", "Modality", "SeriesDescription", "SeriesNumber")
_PLANE_TAGS = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")
_PIXEL_TAGS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")
_NEEDED_TAGS = ("SeriesInstanceUID", *_PIXEL_TAGS, "PhotometricInterpretation")
_RESCALE_TAGS = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")
_TAGS = (*_FILE_TAGS, *_NEEDED_TAGS, *_PLANE_TAGS, *_RESCALE_TAGS, *GROUP_TAGS, *MARKS)
_MORE_TAGS = ("SOPClassUID", "SamplesPerPixel", "NumberOfFrames", "HighBit", "PixelData")
_PIXEL_DATA = 0x7FE00010
_INVERTED = "MONOCHROME1"
_GREY = ("MONOCHROME2", _INVERTED)
_DEFERRED = 4096  # bytes from which on a value is left in the file
_MAX_PIXELS = 2**26  # of one slice
_MAX_FRAMES = 2**16


def read_header(path: Path) -> Header:
    """Reads all of a file but its pixels; never raises for what is in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom quotes the values it warns about
            if _is_deflated(path):
                message = "the file is deflated as a whole; convert it to another transfer syntax"
                return Header(path, problems=(("deflated", message),))
            dataset = dcmread(path, defer_size=_DEFERRED, specific_tags=[*_TAGS, *_MORE_TAGS])
            problems = tuple(_problems(path, dataset))
            planes = [] if problems else list(frame_datasets(dataset))
            problems = problems or tuple(_missing_planes(planes))
            frames = () if problems else tuple(_frames(path, dataset, planes))
            problems = problems or tuple(dict.fromkeys(p for f in frames for p in _plane_problems(f)))
            return Header(
                path=path,
                series=_text(dataset, "SeriesInstanceUID"),
                modality=_text(dataset, "Modality"),
                description=_text(dataset, "SeriesDescription"),
                number=_text(dataset, "SeriesNumber"),
                frames=() if problems else frames,
                problems=problems,
            )
    except InvalidDicomError:
        message = "it has no DICOM header: damaged, no DICOM, or saved without one; fetch it from its source"
        return Header(path, problems=(("unreadable", message),))
    except Exception:  # a parser fed with damaged bytes may raise anything
        message = "the DICOM file is damaged; fetch it again from its source"
        return Header(path, problems=(("unreadable", message),))


def _is_deflated(path: Path) -> bool:
    """Whether reading the file would inflate it, to up to a thousand times its size."""
    try:
        meta = read_file_meta_info(path)
    except InvalidDicomError:
        return False  # there is none; what follows may be told all the same
    return bool(meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian)


def _text(dataset: Dataset, tag: str) -> str:
    """A value in one line of printable characters."""
    value = dataset.get(tag)
    text = "" if value is None else " ".join(str(value).split())
    return "".join(character for character in text if character.isprintable())[:64]


def _problems(path: Path, dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Rule and message of everything that keeps a file from being slices."""
    if dataset.get("Modality") == "SEG":
        yield "no-image", "it is a segmentation, not an image"
        return
    if "PixelData" not in dataset and not dataset.get("Rows"):
        yield "missing-tag", "PixelData, Rows missing; this is no image (but a report, say) or was cut short"
        return
    needed = _NEEDED_TAGS if has_functional_groups(dataset) else (*_NEEDED_TAGS, *_PLANE_TAGS)
    missing = [tag for tag in needed if tag not in dataset or dataset[tag].is_empty]
    pixels = _pixel_element(dataset)
    if pixels is None or (pixels.length == 0 if isinstance(pixels, RawDataElement) else pixels.is_empty):
        missing.append("PixelData")
    if missing:
        is_picture = set(missing) <= set(_PLANE_TAGS)
        what = "has no place in the patient" if is_picture else "is no plain image slice or was cut short"
        yield "missing-tag", f"{', '.join(missing)} missing; it {what}"
        return
    num_frames = int(dataset.get("NumberOfFrames") or 1)
    if num_frames != 1 and not has_functional_groups(dataset):
        message = "its frames carry no positions of their own (no enhanced CT or MR); convert it"
        yield "multi-frame", message
        return
    if num_frames > _MAX_FRAMES or not 0 < int(dataset.Rows) * int(dataset.Columns) <= _MAX_PIXELS:
        yield "too-large", "it claims more frames or pixels than any scanner makes; fetch it again"
        return
    if (photometric := dataset.PhotometricInterpretation) not in _GREY:
        yield (
            "photometric",
            f"MONOCHROME2 or MONOCHROME1 is needed, not {_known(photometric)}; convert the series first",
        )
        return
    if dataset.BitsAllocated not in (8, 16, 32) or (dataset.get("SamplesPerPixel") or 1) != 1:
        yield "pixel-type", "one sample of 8, 16 or 32 bits a pixel is needed; convert the series first"
    if dataset.get("HighBit", dataset.BitsStored - 1) != dataset.BitsStored - 1:
        # Once allowed, and read by most programs as if they were: other values, without a word.
        yield "pixel-type", "its values do not begin at the lowest bit (HighBit); convert the series first"
    if "ModalityLUTSequence" in dataset:
        yield "modality-lut", "a modality lookup table is not supported; convert the series first"
    if not _is_whole(path, dataset, num_frames):
        yield "pixel-data", "the pixel data do not fill the slice exactly; fetch the file again"


def _known(photometric: str) -> str:
    """The value if it is one of the standard's; a damaged file's could be anything."""
    return photometric if photometric in ("RGB", "PALETTE COLOR", "YBR_FULL") else "another"


def _is_whole(path: Path, dataset: Dataset, num_frames: int) -> bool:
    """Whether uncompressed pixel data hold the slices, no more and no less, and lie in the file."""
    element = _pixel_element(dataset)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated or not isinstance(element, RawDataElement):
        return True  # decoding tells
    expected = int(dataset.Rows) * int(dataset.Columns) * num_frames * int(dataset.BitsAllocated) // 8
    is_inside = element.value_tell + element.length <= path.stat().st_size
    return is_inside and expected <= element.length <= expected + expected % 2


def _pixel_element(dataset: Dataset) -> RawDataElement | DataElement | None:
    """The pixel data, left in the file: what a data set is asked for by name it reads."""
    return next((element for element in dataset.values() if element.tag == _PIXEL_DATA), None)


def _missing_planes(planes: Iterable[Dataset]) -> Iterator[tuple[str, str]]:
    missing = {tag for plane in planes for tag in _PLANE_TAGS if tag not in plane or plane[tag].is_empty}
    if missing:
        yield "missing-tag", f"{', '.join(sorted(missing))} missing in some of its frames"


def _frames(path: Path, dataset: Dataset, planes: Sequence[Dataset]) -> Iterator[Frame]:
    for index, plane in enumerate(planes):
        rows, columns = (float(mm) for mm in plane.PixelSpacing)
        slope, intercept = plane.get("RescaleSlope"), plane.get("RescaleIntercept")
        yield Frame(
            path=path,
            index=index,
            name=f"{path.name} frame {index + 1}" if len(planes) > 1 else path.name,
            size=(int(dataset.Columns), int(dataset.Rows)),
            spacing=(columns, rows),
            orientation=np.array(plane.ImageOrientationPatient, dtype=np.float64).reshape(2, 3),
            position=np.array(plane.ImagePositionPatient, dtype=np.float64).reshape(3),
            rescale=(1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)),
            stack=_text(plane, "StackID"),
            marks={tag: text for tag in MARKS if (text := _mark(plane, tag))},
            is_inverted=dataset.PhotometricInterpretation == _INVERTED,
        )


def _mark(plane: Dataset, tag: str) -> str:
    value = plane.get(tag)
    if value is None or isinstance(value, str):
        return value or ""
    parts = [value] if isinstance(value, float | int) else list(value)
    return " ".join(f"{part:g}" if isinstance(part, float | int) else str(part) for part in parts)[:64]


def _plane_problems(frame: Frame) -> Iterator[tuple[str, str]]:
    if not (np.isfinite(frame.spacing).all() and min(frame.spacing) > 0):
        yield "pixel-spacing", "PixelSpacing must be two positive numbers of millimetres"
    slope, intercept = frame.rescale
    if slope == 0 or not np.isfinite((slope, intercept)).all():
        yield "rescale", "RescaleSlope and RescaleIntercept must be finite, and the slope not 0"
    if not np.isfinite(frame.position).all():
        yield "slice-position", "ImagePositionPatient is not finite"
    lengths = np.linalg.norm(frame.orientation, axis=1)
    if not np.abs(lengths - 1).max() <= 1e-3 or not np.linalg.norm(frame.normal) > 1e-3:
        yield "slice-orientation", "ImageOrientationPatient must be two vectors of length 1 that span a plane"
