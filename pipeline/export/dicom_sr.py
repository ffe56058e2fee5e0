"""DICOM Structured Reports by template TID 1500: volumes of structures, or what a classifier answered."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pydicom import Dataset, dcmread
from pydicom.uid import UID, generate_uid

from pipeline.export.dicom_seg import concept
from pipeline.export.dicom_source import Source, clean_text
from pipeline.export.prediction import Maker, Prediction
from pipeline.export.sr_document import (
    Images,
    build_report,
    describe_algorithm,
    refer_to,
    whole_series,
    write_verified,
)
from pipeline.export.sr_reading import Group
from pipeline.terminology import SIDES, Code, Term
from pipeline.volume import measure_volumes

_SCHEME: Final = "99CLINSEG"
_VOLUME: Final = Code("118565006", "Volume")
_MILLILITRE: Final = Code("mL", "mL", "UCUM")
_NO_UNIT: Final = Code("1", "no units", "UCUM")
_PREDICTED: Final = Code("PREDICTED", "Predicted class", _SCHEME)
_REVIEW: Final = Code("REVIEW", "Review by a person advised", _SCHEME)
_CONFIDENCE: Final = Code("CONFIDENCE", "Confidence of the answer", _SCHEME)
_ANSWERS: Final = {True: Code("373066001", "Yes"), False: Code("373067005", "No")}


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
        dataset = build_report(prediction.source, prediction.maker, groups, prediction.uid, found)
    expected = [
        Group(
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
    write_verified(path, dataset, expected)


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
        dataset = build_report(source, maker, [group], uid, [])
    expected = Group(
        "classification",
        {name.value: value for name, value in shares.items()},
        tuple((name.value, value.value) for name, value in codes),
        frozenset(str(header.SOPInstanceUID) for header in source.headers),
    )
    write_verified(path, dataset, [expected])


def _images_of(prediction: Prediction, name: str) -> Images:
    """The slices that a structure is on; all of them where no slice of the series is known to be one."""
    frames: dict[str, tuple[Dataset, list[int]]] = {}
    for plane, image in sorted(prediction.source.planes.items()):
        if prediction.mask(name, plane).any():
            _, numbers = frames.setdefault(image.header.SOPInstanceUID, (image.header, []))
            numbers += [] if image.frame is None else [image.frame]
    return list(frames.values()) or whole_series(prediction.source)


def _measure(
    number: int, name: str, millilitres: float, term: Term, images: Images, prediction: Prediction
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
        "algorithm_id": describe_algorithm(maker),
        "measurements": [sr.Measurement(concept(_VOLUME), millilitres, concept(_MILLILITRE))],
    }
    if prediction.segmentation is None:
        return sr.MeasurementsAndQualitativeEvaluations(source_images=refer_to(images), **common)
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
        algorithm_id=describe_algorithm(maker),
        measurements=[
            sr.Measurement(concept(name), value, concept(_NO_UNIT)) for name, value in shares.items()
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(concept(name), concept(value)) for name, value in codes
        ],
        source_images=refer_to(whole_series(source)),
    )
