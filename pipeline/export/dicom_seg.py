"""DICOM Segmentation objects: a segment for each structure, with code, side and colour, in its place."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from pipeline.errors import Fault, IntegrityError, ResourceError
from pipeline.export.dicom_source import Prediction, clean_text, lps_affine
from pipeline.files import atomic_path
from pipeline.memory import available_bytes, format_size
from pipeline.terminology import CATEGORIES, SIDES, Code, Term
from pipeline.volume import Grid

_PLACE_TOLERANCE = 0.01
"""Voxels by which a frame's corners, read back, may lie beside those of its plane."""
_LEVELS = 255
"""A probability of 1 in a fractional segmentation; a voxel is within half a level of what was predicted."""

_Kind = Literal["BINARY", "FRACTIONAL"]
_SERIES_NUMBERS: dict[_Kind, int] = {"BINARY": 9001, "FRACTIONAL": 9002}
"""Behind those of images; only people read them."""


def write_segmentation(path: Path, prediction: Prediction) -> None:
    """Writes a binary segmentation and verifies it before it gets its name.

    Only frames with something in them are stored; where there is nothing at all, one empty frame of each
    segment is. Regions that overlap are segments that overlap. The same prediction has the same UIDs.

    Raises:
        ResourceError: If the disk is full or the folder cannot be written.
        IntegrityError: If a frame, read back, lies elsewhere in the patient or holds other voxels than the
            label map; there is no file then.
    """
    names = list(prediction.contract.structures)
    masks = _label_stack(prediction, names) if prediction.array.any() else None
    _write_verified(path, prediction, "BINARY", masks)


def write_fractional_segmentation(path: Path, prediction: Prediction) -> None:
    """The same of probabilities, in steps of 1/255.

    Raises:
        ResourceError: As above, and if the probabilities do not fit into memory.
        IntegrityError: As above.
    """
    needed = 5 * len(prediction.contract.structures) * prediction.array.size
    if needed > available_bytes():
        message = f"its probabilities as DICOM take {format_size(needed)} of memory; leave this format out"
        raise ResourceError(Fault(path.stem, "out-of-memory", message))
    _write_verified(path, prediction, "FRACTIONAL", _probability_stack(prediction))


def _label_stack(prediction: Prediction, names: Sequence[str]) -> NDArray[Any]:
    """Segment numbers `(K, J, I)`, or where regions overlap a mask for each `(K, J, I, segment)`."""
    structures, array = prediction.contract.structures, prediction.array
    if prediction.contract.regions is None:
        numbers = np.zeros(int(array.max()) + 1, np.uint16)
        for number, name in enumerate(names, start=1):
            value = structures[name][0]
            if value < len(numbers):
                numbers[value] = number
        numbered: NDArray[Any] = numbers[array].transpose(2, 1, 0)
        return numbered
    return np.stack([np.isin(array, structures[name]).transpose(2, 1, 0) for name in names], axis=-1)


def _probability_stack(prediction: Prediction) -> NDArray[np.float32]:
    assert prediction.probabilities is not None, "the workflow asks for them"
    frames = np.asanyarray(nib.load(prediction.probabilities).dataobj)  # type: ignore[attr-defined]
    contract = prediction.contract
    channels = [contract.channel_names.index(name) for name in contract.structures]
    return np.stack([np.clip(frames[..., c], 0, 1).transpose(2, 1, 0) for c in channels], axis=-1)


def _write_verified(path: Path, prediction: Prediction, kind: _Kind, stack: NDArray[Any] | None) -> None:
    dataset = _build(prediction, kind, stack)
    with atomic_path(path) as temporary:
        with warnings.catch_warnings(action="ignore"):  # pydicom quotes the values it warns about
            dataset.save_as(temporary, enforce_file_format=True)
            found = dcmread(temporary)
        if not _is_placed(found, prediction, kind, stack):
            message = (
                "read back, the segmentation is not the label map in place; it was removed, this is a bug"
            )
            raise IntegrityError(Fault(str(path), "write-not-verified", message))


def _build(prediction: Prediction, kind: _Kind, stack: NDArray[Any] | None) -> Dataset:
    """The object; without a stack one empty frame of each segment."""
    with warnings.catch_warnings(action="ignore"):
        from highdicom import PixelMeasuresSequence, PlaneOrientationSequence  # noqa: PLC0415 - half a second
        from highdicom.seg import Segmentation  # noqa: PLC0415

        grid, maker = prediction.grid, prediction.maker
        affine = lps_affine(grid)
        axes = affine[:3, :3] / grid.spacing
        step = grid.spacing[2]
        pixels = stack if stack is not None else np.zeros((1, grid.shape[1], grid.shape[0]), np.uint8)
        dataset = Segmentation(
            prediction.source.stand_ins(step),
            pixels,
            kind,
            [_describe(n, *item, prediction) for n, item in enumerate(prediction.contract.terms.items(), 1)],
            series_instance_uid=prediction.uid(f"{kind} series"),
            series_number=_SERIES_NUMBERS[kind],
            sop_instance_uid=prediction.uid(kind),
            instance_number=1,
            manufacturer="clinseg",
            manufacturer_model_name=clean_text(maker.name, 64),
            software_versions=clean_text(maker.version, 64),
            device_serial_number=maker.sha256[:16] or "unknown",
            content_label="SEGMENTATION",
            content_description="Automatic segmentation, not reviewed",
            series_description=clean_text(f"Segmentation by {maker.name}", 64),
            omit_empty_frames=stack is not None,
            plane_positions=list(_positions(prediction, affine, len(pixels))),
            plane_orientation=PlaneOrientationSequence("PATIENT", _numbers((*axes[:, 0], *axes[:, 1]))),
            pixel_measures=PixelMeasuresSequence(
                (grid.spacing[1], grid.spacing[0]), slice_thickness=step, spacing_between_slices=step
            ),
            max_fractional_value=_LEVELS,
        )
    prediction.source.describe(dataset)
    return dataset


def _describe(number: int, name: str, term: Term, prediction: Prediction) -> Any:  # noqa: ANN401 - highdicom is imported late
    from highdicom import AlgorithmIdentificationSequence  # noqa: PLC0415
    from highdicom.color import CIELabColor  # noqa: PLC0415
    from highdicom.seg import SegmentDescription  # noqa: PLC0415
    from pydicom.sr.codedict import codes  # noqa: PLC0415

    maker = prediction.maker
    description = SegmentDescription(
        number,
        clean_text(name, 64),
        _concept(CATEGORIES[term.category]),
        _concept(term.code),
        "AUTOMATIC",
        AlgorithmIdentificationSequence(
            clean_text(maker.name, 64), codes.cid7162.ArtificialIntelligence, maker.sha256[:16] or "unknown"
        ),
        display_color=CIELabColor.from_string(term.colour or "#FFFFFF"),
    )
    description.SegmentDescription = clean_text(name, 1024)
    if term.side is not None:
        concept = description.SegmentedPropertyTypeCodeSequence[0]
        concept.SegmentedPropertyTypeModifierCodeSequence = [_concept(SIDES[term.side])]
    return description


def _concept(code: Code) -> Any:  # noqa: ANN401 - highdicom is imported late
    from highdicom.sr import CodedConcept  # noqa: PLC0415

    return CodedConcept(code.value, code.scheme, code.meaning)


def _positions(prediction: Prediction, affine: NDArray[np.float64], num: int) -> Iterator[Any]:
    """The corner of each plane: in the words of its slice where it is one, else computed."""
    from highdicom import PlanePositionSequence  # noqa: PLC0415

    for plane in range(num):
        header = prediction.source.planes.get(plane)
        corner = header.ImagePositionPatient if header is not None else (affine @ (0, 0, plane, 1))[:3]
        yield PlanePositionSequence("PATIENT", _numbers(corner))


def _numbers(values: Iterable[Any]) -> list[float]:
    return [float(value) for value in values]


def _is_placed(found: Dataset, prediction: Prediction, kind: _Kind, stack: NDArray[Any] | None) -> bool:
    """Whether every frame lies on its plane and holds its voxels, and every plane with voxels has a frame."""
    names = list(prediction.contract.structures)
    missing = {
        (number, plane)
        for number, plane in itertools.product(range(1, len(names) + 1), range(prediction.grid.shape[2]))
        if stack is not None and _expected(prediction, kind, stack, names, number, plane).any()
    }
    frames = zip(found.PerFrameFunctionalGroupsSequence, _pixels(found), strict=True)
    for groups, pixels in frames:
        plane = _plane_of(groups, found, prediction.grid)
        number = int(_segment(groups, found).ReferencedSegmentNumber)
        if plane is None or not 1 <= number <= len(names):
            return False
        expected = _expected(prediction, kind, stack, names, number, plane)
        if not np.array_equal(pixels, expected):
            return False
        missing.discard((number, plane))
    return not missing


def _pixels(found: Dataset) -> Iterator[NDArray[Any]]:
    """Frames one after the other; those of single bits need not begin with a byte."""
    stored, size = np.frombuffer(found.PixelData, np.uint8), found.Rows * found.Columns
    for first in range(0, int(found.NumberOfFrames) * size, size):
        if found.BitsAllocated == 1:
            start, end = first // 8, -(-(first + size) // 8)
            bits = np.unpackbits(stored[start:end], bitorder="little")
            frame = bits[first - 8 * start : first - 8 * start + size]
        else:
            frame = stored[first : first + size]
        yield frame.reshape(found.Rows, found.Columns)


def _segment(groups: Dataset, found: Dataset) -> Dataset:
    shared = found.SharedFunctionalGroupsSequence[0]
    holder = groups if "SegmentIdentificationSequence" in groups else shared
    identification: Dataset = holder.SegmentIdentificationSequence[0]
    return identification


def _expected(
    prediction: Prediction,
    kind: _Kind,
    stack: NDArray[Any] | None,
    names: Sequence[str],
    number: int,
    plane: int,
) -> NDArray[Any]:
    """What a frame has to hold, from the label map itself; of probabilities their nearest level."""
    if kind == "FRACTIONAL" and stack is not None:
        levels: NDArray[Any] = np.around(stack[plane, :, :, number - 1] * _LEVELS).astype(np.uint8)
        return levels
    return prediction.mask(names[number - 1], plane)


def _plane_of(groups: Dataset, found: Dataset, grid: Grid) -> int | None:
    """The plane of the grid that a frame's corners lie on; None if they lie elsewhere."""
    shared = found.SharedFunctionalGroupsSequence[0]
    orientation = np.array(_numbers(shared.PlaneOrientationSequence[0].ImageOrientationPatient)).reshape(2, 3)
    between_rows, between_columns = _numbers(shared.PixelMeasuresSequence[0].PixelSpacing)
    corner = np.array(_numbers(groups.PlanePositionSequence[0].ImagePositionPatient))
    along_row = orientation[0] * between_columns * (found.Columns - 1)
    along_column = orientation[1] * between_rows * (found.Rows - 1)
    corners = np.array([corner, corner + along_row, corner + along_column])
    to_voxel = np.linalg.inv(lps_affine(grid))
    voxels = corners @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    plane = round(float(voxels[0, 2]))
    places = np.array([(0, 0, plane), (grid.shape[0] - 1, 0, plane), (0, grid.shape[1] - 1, plane)])
    is_there = np.abs(voxels - places).max() <= _PLACE_TOLERANCE and 0 <= plane < grid.shape[2]
    return plane if is_there else None
