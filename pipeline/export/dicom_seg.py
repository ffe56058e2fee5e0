"""DICOM Segmentation objects: a segment for each structure, with code, side and colour, in its place."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from pipeline.errors import Fault, IntegrityError, ResourceError
from pipeline.export.dicom_source import clean_text, lps_affine
from pipeline.export.prediction import Prediction
from pipeline.export.seg_reading import LEVELS, Kind, is_placed, numbers, plane_of
from pipeline.export.signature import MANUFACTURER
from pipeline.files import atomic_path
from pipeline.memory import available_bytes, format_size
from pipeline.terminology import CATEGORIES, SIDES, Code, Term

_SERIES_NUMBERS: dict[Kind, int] = {"BINARY": 9001, "FRACTIONAL": 9002}
"""Behind those of images; only people read them."""
_SEGMENTATION = Code("113076", "Segmentation", "DCM")
_SOURCE_IMAGE = Code("121322", "Source image for image processing operation", "DCM")


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
    frames = np.asanyarray(nib.load(prediction.probabilities).dataobj)  # type: ignore[attr-defined]  # nibabel has no types
    contract = prediction.contract
    channels = [contract.channel_names.index(name) for name in contract.structures]
    return np.stack([np.clip(frames[..., c], 0, 1).transpose(2, 1, 0) for c in channels], axis=-1)


def _write_verified(path: Path, prediction: Prediction, kind: Kind, stack: NDArray[Any] | None) -> None:
    dataset = _build(prediction, kind, stack)
    with atomic_path(path) as temporary:
        with warnings.catch_warnings(action="ignore"):  # pydicom quotes the values it warns about
            dataset.save_as(temporary, enforce_file_format=True)
            found = dcmread(temporary)
        if not is_placed(found, prediction, kind, stack):
            message = (
                "read back, the segmentation is not the label map in place; it was removed, this is a bug"
            )
            raise IntegrityError(Fault(str(path), "write-not-verified", message))


def _build(prediction: Prediction, kind: Kind, stack: NDArray[Any] | None) -> Dataset:
    """The object; without a stack one empty frame of each segment."""
    with warnings.catch_warnings(action="ignore"):
        from highdicom import PixelMeasuresSequence, PlaneOrientationSequence  # noqa: PLC0415 - half a second
        from highdicom.seg import Segmentation  # noqa: PLC0415 - with highdicom, late

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
            manufacturer=MANUFACTURER,
            manufacturer_model_name=clean_text(maker.name, 64),
            software_versions=clean_text(maker.version, 64),
            device_serial_number=maker.sha256[:16] or "unknown",
            content_label="SEGMENTATION",
            content_description="Automatic segmentation, not reviewed",
            series_description=clean_text(f"Segmentation by {maker.name}", 64),
            omit_empty_frames=stack is not None,
            plane_positions=list(_positions(prediction, affine, len(pixels))),
            plane_orientation=PlaneOrientationSequence("PATIENT", numbers((*axes[:, 0], *axes[:, 1]))),
            pixel_measures=PixelMeasuresSequence(
                (grid.spacing[1], grid.spacing[0]), slice_thickness=step, spacing_between_slices=step
            ),
            max_fractional_value=LEVELS,
        )
    _refer(dataset, prediction)
    prediction.source.describe(dataset)
    return dataset


def _refer(dataset: Dataset, prediction: Prediction) -> None:
    """Refers each frame to the slice that it lies on, and to none where slices were resampled.

    Left to itself the library matches frames and slices by their number.
    """
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        plane = plane_of(groups, dataset, prediction.grid)
        image = None if plane is None else prediction.source.planes.get(plane)
        if image is None:
            groups.DerivationImageSequence = []
            continue
        item, source = Dataset(), image.refer()
        source.SpatialLocationsPreserved = "YES"
        source.PurposeOfReferenceCodeSequence = [concept(_SOURCE_IMAGE)]
        item.SourceImageSequence = [source]
        item.DerivationCodeSequence = [concept(_SEGMENTATION)]
        groups.DerivationImageSequence = [item]


def _describe(number: int, name: str, term: Term, prediction: Prediction) -> Any:  # noqa: ANN401 - highdicom is imported late
    from highdicom import AlgorithmIdentificationSequence  # noqa: PLC0415 - with highdicom, late
    from highdicom.color import CIELabColor  # noqa: PLC0415 - with highdicom, late
    from highdicom.seg import SegmentDescription  # noqa: PLC0415 - with highdicom, late
    from pydicom.sr.codedict import codes  # noqa: PLC0415 - with highdicom, late

    maker = prediction.maker
    description = SegmentDescription(
        number,
        clean_text(name, 64),
        concept(CATEGORIES[term.category]),
        concept(term.code),
        "AUTOMATIC",
        AlgorithmIdentificationSequence(
            clean_text(maker.name, 64), codes.cid7162.ArtificialIntelligence, maker.sha256[:16] or "unknown"
        ),
        display_color=CIELabColor.from_string(term.colour or "#FFFFFF"),
    )
    description.SegmentDescription = clean_text(name, 1024)
    if term.side is not None:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [concept(SIDES[term.side])]
    return description


def concept(code: Code) -> Any:  # noqa: ANN401 - highdicom is imported late
    """A code in highdicom's form."""
    from highdicom.sr import CodedConcept  # noqa: PLC0415 - with highdicom, late

    return CodedConcept(code.value, code.scheme, code.meaning)


def _positions(prediction: Prediction, affine: NDArray[np.float64], num: int) -> Iterator[Any]:
    """The corner of each plane: in the words of its slice where it is one, else computed."""
    from highdicom import PlanePositionSequence  # noqa: PLC0415 - with highdicom, late

    for plane in range(num):
        image = prediction.source.planes.get(plane)
        corner = image.position if image is not None else (affine @ (0, 0, plane, 1))[:3]
        yield PlanePositionSequence("PATIENT", numbers(corner))
