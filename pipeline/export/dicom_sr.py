"""DICOM Structured Reports by template TID 1500: volumes of structures, or what a classifier answered."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pydicom import Dataset, dcmread
from pydicom.uid import UID, generate_uid

from pipeline.errors import Fault, IntegrityError
from pipeline.export.dicom_seg import concept
from pipeline.export.dicom_source import Maker, Prediction, Source, clean_text
from pipeline.files import atomic_path
from pipeline.terminology import SIDES, Code, Term
from pipeline.volume import measure_volumes

_SERIES_NUMBER: Final = 9004
_SCHEME: Final = "99CLINSEG"
_IMAGING: Final = Code("363679005", "Imaging")
_PROCEDURES: Final = {
    "CT": Code("77477000", "Computed tomography"),
    "MR": Code("113091000", "Magnetic resonance imaging"),
}
_VOLUME: Final = Code("118565006", "Volume")
_MILLILITRE: Final = Code("mL", "mL", "UCUM")
_NO_UNIT: Final = Code("1", "no units", "UCUM")
_PREDICTED: Final = Code("PREDICTED", "Predicted class", _SCHEME)
_REVIEW: Final = Code("REVIEW", "Review by a person advised", _SCHEME)
_CONFIDENCE: Final = Code("CONFIDENCE", "Confidence of the answer", _SCHEME)
_ANSWERS: Final = {True: Code("373066001", "Yes"), False: Code("373067005", "No")}
_GROUP: Final = "125007"
_TRACKING: Final = "112039"
_MOST_PRECISE: Final = 1e-6
"""Relative; a number in DICOM has 16 characters."""


_Images = Sequence[tuple[Dataset, Sequence[int]]]
"""Files, with the numbers of their frames; none for all of a file."""


@dataclass(frozen=True)
class Answer:
    """What a classifier says of a case.

    Attributes:
        probabilities: Of each class by its name, calibrated, in the order of the classes.
        predicted: Names of the classes that it is of.
        confidence: Of that.
        review: Whether a person should look.
    """

    probabilities: Mapping[str, float]
    predicted: tuple[str, ...]
    confidence: float | None
    review: bool


@dataclass(frozen=True)
class _Group:
    """What a measurement group has to hold, read back: numbers and codes by the code of their name."""

    name: str
    numbers: Mapping[str, float]
    codes: tuple[tuple[str, str], ...]
    references: frozenset[str]


def write_measurements(path: Path, prediction: Prediction) -> None:
    """Writes the volume of each structure, and verifies it before it gets its name.

    A group refers to its segment where a segmentation was made, else to the slices that the structure is on.
    The same prediction has the same UIDs.

    Raises:
        ResourceError: If the disk is full or the folder cannot be written.
        IntegrityError: If a value, a code or a reference, read back, is another; there is no file then.
    """
    contract = prediction.contract
    volumes = measure_volumes(prediction.array, prediction.grid, contract.structures)
    images = {name: _images_of(prediction, name) for name in volumes}
    with warnings.catch_warnings(action="ignore"):  # pydicom quotes the values it warns about
        found = (
            []
            if prediction.segmentation is None
            else [dcmread(prediction.segmentation, stop_before_pixels=True)]
        )
        groups = [
            _measure(number, name, volumes[name], term, images[name], prediction)
            for number, (name, term) in enumerate(contract.terms.items(), start=1)
        ]
        dataset = _build(prediction.source, prediction.maker, groups, prediction.uid, found)
    expected = [
        _Group(
            clean_text(name, 64),
            {_VOLUME.value: volumes[name]},
            (("121071", term.code.value),),
            frozenset(
                {str(found[0].SOPInstanceUID)}
                if found
                else [str(header.SOPInstanceUID) for header, _ in images[name]]
            ),
        )
        for name, term in contract.terms.items()
    ]
    _write_verified(path, dataset, expected)


def write_answer(path: Path, answer: Answer, source: Source, maker: Maker) -> None:
    """Writes what a classifier answered, and verifies it as above.

    Raises:
        ResourceError: As above.
        IntegrityError: As above.
    """

    def uid(what: str) -> UID:
        content = json.dumps(asdict(answer), sort_keys=True)
        known = hashlib.sha256(content.encode()).hexdigest()
        return generate_uid(entropy_srcs=[what, str(source.first.SeriesInstanceUID), maker.sha256, known])

    classes = {
        name: Code(f"CLASS{number}", clean_text(name, 64), _SCHEME)
        for number, name in enumerate(answer.probabilities, start=1)
    }
    shares = {
        Code(f"P{number}", clean_text(f"Probability of {name}", 64), _SCHEME): share
        for number, (name, share) in enumerate(answer.probabilities.items(), start=1)
    }
    if answer.confidence is not None:
        shares[_CONFIDENCE] = answer.confidence
    codes = [(_PREDICTED, classes[name]) for name in answer.predicted]
    codes.append((_REVIEW, _ANSWERS[answer.review]))
    with warnings.catch_warnings(action="ignore"):
        group = _evaluate(shares, codes, source, maker, uid)
        dataset = _build(source, maker, [group], uid, [])
    expected = _Group(
        "classification",
        {name.value: value for name, value in shares.items()},
        tuple((name.value, value.value) for name, value in codes),
        frozenset(str(header.SOPInstanceUID) for header in source.headers),
    )
    _write_verified(path, dataset, [expected])


def _images_of(prediction: Prediction, name: str) -> _Images:
    """The slices that a structure is on; all of them where no slice of the series is known to be one."""
    frames: dict[str, tuple[Dataset, list[int]]] = {}
    for plane, image in sorted(prediction.source.planes.items()):
        if prediction.mask(name, plane).any():
            _, numbers = frames.setdefault(image.header.SOPInstanceUID, (image.header, []))
            numbers += [] if image.frame is None else [image.frame]
    return list(frames.values()) or _whole(prediction.source)


def _whole(source: Source) -> _Images:
    return [(header, []) for header in source.headers]


def _build(
    source: Source,
    maker: Maker,
    groups: Sequence[Any],
    uid: Callable[[str], UID],
    others: Sequence[Dataset],
) -> Dataset:
    from highdicom import sr  # noqa: PLC0415 - half a second
    from pydicom.sr.codedict import codes  # noqa: PLC0415 - with highdicom, late

    identity = clean_text(maker.name, 64)
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=["clinseg", maker.sha256]),
        name="clinseg",
        manufacturer_name="clinseg",
        model_name=identity,
        serial_number=maker.sha256[:16] or "unknown",
    )
    context = sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device))
    procedure = _PROCEDURES.get(str(source.first.get("Modality", "")), _IMAGING)
    content = sr.MeasurementReport(
        observation_context=context,
        procedure_reported=concept(procedure),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    dataset = sr.ComprehensiveSR(
        evidence=[*source.evidence(), *others],
        content=content[0],
        series_instance_uid=uid("report series"),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=uid("report"),
        instance_number=1,
        manufacturer="clinseg",
        series_description=clean_text(f"Measurements by {maker.name}", 64),
        is_complete=True,
        is_final=False,
        is_verified=False,
    )
    dataset.ManufacturerModelName = identity
    dataset.SoftwareVersions = clean_text(maker.version, 64)
    dataset.DeviceSerialNumber = maker.sha256[:16] or "unknown"
    source.describe(dataset)
    return dataset


def _algorithm(maker: Maker) -> Any:  # noqa: ANN401 - highdicom is imported late
    from highdicom import sr  # noqa: PLC0415 - with highdicom, late

    parameters = [f"Model SHA-256 {maker.sha256}", "Automatic, not reviewed"]
    return sr.AlgorithmIdentification(clean_text(maker.name, 64), f"clinseg {maker.version}", parameters)


def _measure(
    number: int, name: str, millilitres: float, term: Term, images: _Images, prediction: Prediction
) -> Any:  # noqa: ANN401 - highdicom is imported late
    from highdicom import sr  # noqa: PLC0415 - with highdicom, late

    maker, source = prediction.maker, prediction.source
    side = None if term.side is None else concept(SIDES[term.side])
    sites = [sr.FindingSite(concept(term.code), laterality=side)] if term.category == "anatomy" else None
    common: dict[str, Any] = {
        "tracking_identifier": sr.TrackingIdentifier(
            uid=prediction.uid(f"report {name}"), identifier=clean_text(name, 64)
        ),
        "finding_type": concept(term.code),
        "finding_sites": sites,
        "algorithm_id": _algorithm(maker),
        "measurements": [sr.Measurement(concept(_VOLUME), millilitres, concept(_MILLILITRE))],
    }
    if prediction.segmentation is None:
        return sr.MeasurementsAndQualitativeEvaluations(source_images=_references(images), **common)
    from pydicom.uid import SegmentationStorage  # noqa: PLC0415 - with highdicom, late

    segment = sr.ReferencedSegment(
        SegmentationStorage,
        prediction.uid("BINARY"),
        number,
        source_series=sr.SourceSeriesForSegmentation(source.first.SeriesInstanceUID),
    )
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **common)


def _evaluate(
    shares: Mapping[Code, float],
    codes: Sequence[tuple[Code, Code]],
    source: Source,
    maker: Maker,
    uid: Callable[[str], UID],
) -> Any:  # noqa: ANN401 - highdicom is imported late
    from highdicom import sr  # noqa: PLC0415 - with highdicom, late

    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=uid("report answer"), identifier="classification"),
        algorithm_id=_algorithm(maker),
        measurements=[
            sr.Measurement(concept(name), value, concept(_NO_UNIT)) for name, value in shares.items()
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(concept(name), concept(value)) for name, value in codes
        ],
        source_images=_references(_whole(source)),
    )


def _references(images: _Images) -> list[Any]:
    from highdicom import sr  # noqa: PLC0415 - with highdicom, late

    return [
        sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID, frames or None)
        for header, frames in images
    ]


def _write_verified(path: Path, dataset: Dataset, expected: Sequence[_Group]) -> None:
    with atomic_path(path) as temporary:
        with warnings.catch_warnings(action="ignore"):
            dataset.save_as(temporary, enforce_file_format=True)
            found = [_read_group(item) for item in _items(dcmread(temporary)) if _code(item) == _GROUP]
        is_whole = len(found) == len(expected) and all(map(_is_same, found, expected))
        if not is_whole:
            message = "read back, the report does not say what was predicted; it was removed, this is a bug"
            raise IntegrityError(Fault(str(path), "write-not-verified", message))


def _items(item: Dataset) -> Iterator[Dataset]:
    """An item and all below it, as pydicom reads them."""
    yield item
    for inner in item.get("ContentSequence") or ():
        yield from _items(inner)


def _code(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].CodeValue) if names else ""


def _read_group(item: Dataset) -> _Group:
    inner = list(_items(item))[1:]
    return _Group(
        next(str(one.TextValue) for one in inner if _code(one) == _TRACKING),
        {
            _code(one): float(one.MeasuredValueSequence[0].NumericValue)
            for one in inner
            if one.ValueType == "NUM"
        },
        tuple(
            (_code(one), str(one.ConceptCodeSequence[0].CodeValue))
            for one in inner
            if one.ValueType == "CODE"
        ),
        frozenset(
            str(one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
            for one in inner
            if one.ValueType == "IMAGE"
        ),
    )


def _is_same(found: _Group, expected: _Group) -> bool:
    """Codes beside those that are expected, such as sites and sides, may be there."""
    return (
        found.name == expected.name
        and found.numbers.keys() == expected.numbers.keys()
        and all(
            abs(found.numbers[key] - value) <= _MOST_PRECISE * max(1.0, abs(value))
            for key, value in expected.numbers.items()
        )
        and set(expected.codes) <= set(found.codes)
        and found.references == expected.references
    )
