"""What our DICOM Structured Reports have in common: maker, patient, evidence, and how they are written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from pydicom import Dataset
from pydicom.uid import UID, generate_uid

from pipeline.errors import Fault, IntegrityError
from pipeline.export.dicom_seg import concept
from pipeline.export.dicom_source import Source, clean_text
from pipeline.export.prediction import Maker
from pipeline.export.signature import MANUFACTURER
from pipeline.export.sr_reading import Group, is_same, read_groups
from pipeline.files import atomic_path
from pipeline.terminology import Code

_SERIES_NUMBER: Final = 9004
_IMAGING: Final = Code("363679005", "Imaging")
_PROCEDURES: Final = {
    "CT": Code("77477000", "Computed tomography"),
    "MR": Code("113091000", "Magnetic resonance imaging"),
}

Images = Sequence[tuple[Dataset, Sequence[int]]]
"""Files, with the numbers of their frames; none for all of a file."""


def whole_series(source: Source) -> Images:
    """Every file of a series, with all of its frames."""
    return [(header, []) for header in source.headers]


def build_report(
    source: Source,
    maker: Maker,
    groups: Sequence[Any],
    uid: Callable[[str], UID],
    others: Sequence[Dataset],
) -> Dataset:
    """The document.

    Args:
        source: The series whose patient and study it is of.
        maker: The model.
        groups: highdicom's measurement groups.
        uid: Gives a UID for what is named.
        others: Headers of what is referred to beside the series.
    """
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
        manufacturer=MANUFACTURER,
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


def describe_algorithm(maker: Maker) -> Any:  # noqa: ANN401 - highdicom is imported late
    """The model, as a group names it."""
    from highdicom import sr  # noqa: PLC0415 - with highdicom, late

    parameters = [f"Model SHA-256 {maker.sha256}", "Automatic, not reviewed"]
    return sr.AlgorithmIdentification(clean_text(maker.name, 64), f"clinseg {maker.version}", parameters)


def refer_to(images: Images) -> list[Any]:
    """Highdicom's references of a group to the images it was measured on."""
    from highdicom import sr  # noqa: PLC0415 - with highdicom, late

    return [
        sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID, frames or None)
        for header, frames in images
    ]


def write_verified(path: Path, dataset: Dataset, expected: Sequence[Group]) -> None:
    """Writes a report; it gets its name only if it says what is expected.

    Raises:
        ResourceError: If the disk is full or the folder cannot be written.
        IntegrityError: If a value, a code or a reference, read back, is another; there is no file then.
    """
    with atomic_path(path) as temporary:
        with warnings.catch_warnings(action="ignore"):
            dataset.save_as(temporary, enforce_file_format=True)
            found = read_groups(temporary)
        is_whole = len(found) == len(expected) and all(map(is_same, found, expected))
        if not is_whole:
            message = "read back, the report does not say what was predicted; it was removed, this is a bug"
            raise IntegrityError(Fault(str(path), "write-not-verified", message))
