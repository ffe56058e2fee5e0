"""What a PACS holds, and single instances on disk: whole or absent, under hashes of their UIDs."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Protocol

from pydicom import dcmread

from pipeline.errors import Fault, InputError
from pipeline.files import atomic_path

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_UID_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Query:
    """Which studies are meant: each that fits all that is given.

    Attributes:
        study: Study Instance UID.
        patient: Patient ID.
        accession: Accession number.
    """

    study: str | None = None
    patient: str | None = None
    accession: str | None = None

    @property
    def keys(self) -> dict[str, str]:
        """What is given, by DICOM's keywords."""
        told = {"StudyInstanceUID": self.study, "PatientID": self.patient, "AccessionNumber": self.accession}
        return {keyword: value for keyword, value in told.items() if value}


@dataclass(frozen=True, slots=True)
class FoundSeries:
    """A series as a PACS tells of it.

    Attributes:
        study: Study Instance UID.
        uid: Series Instance UID.
        modality: Such as MR.
        description: In the words of the scanner.
        number: Of the series.
        instances: The SOP Instance UIDs that the PACS announces, each with its SOP Class UID where it tells.
    """

    study: str
    uid: str
    modality: str
    description: str
    number: str
    instances: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The short id by which `clinseg series` calls it too."""
        return hashlib.sha256(self.uid.encode()).hexdigest()[:6]


@dataclass(frozen=True, slots=True)
class Instance:
    """One object that arrived.

    Attributes:
        study: Study Instance UID.
        series: Series Instance UID.
        uid: SOP Instance UID.
        content: The file, as it was sent.
    """

    study: str
    series: str
    uid: str
    content: bytes

    @property
    def path(self) -> Path:
        """Where it belongs below the folder of its study: no text of a header becomes part of a path."""
        return Path(hash_uid(self.series)) / f"{hash_uid(self.uid)}.dcm"


class Pacs(Protocol):
    """A PACS, whatever it speaks. All three raise ServiceError if it cannot be reached, or breaks off."""

    def find(self, query: Query) -> list[FoundSeries]:
        """The series of the studies that a query means, with the instances that each has."""

    def fetch(self, series: FoundSeries, keep: Callable[[Instance], None]) -> None:
        """Gives `keep` each instance of a series that arrives; these may be fewer than were announced."""

    def send(self, files: Sequence[Path], on_file: Callable[[], None] = lambda: None) -> dict[Path, str]:
        """Sends DICOM files; those that the PACS refused, each with the reason."""

    def hang_up(self) -> None:
        """Breaks off what another thread has under way."""


def hash_uid(uid: str) -> str:
    """A name for what has this UID, that is safe in a path and tells nothing; 64 bits and more never meet."""
    return hashlib.sha256(uid.encode()).hexdigest()[:20]


def is_uid(text: str) -> bool:
    """Whether a text is a UID, leading zeros in its numbers aside, which scanners do write."""
    return len(text) <= _UID_LENGTH and _UID.fullmatch(text) is not None


def read_instance(content: bytes) -> Instance:
    """Understands a DICOM file that arrived.

    Args:
        content: The file's bytes.

    Raises:
        InputError: If it is damaged, or a UID is missing or none.
    """
    tags = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
    try:
        with warnings.catch_warnings(action="ignore"):  # pydicom quotes the values it warns about
            header = dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=list(tags))
            study, series, uid = (str(header.get(tag) or "") for tag in tags)
    except Exception as error:  # a parser fed with damaged bytes may raise anything
        raise InputError(Fault("instance", "unreadable", "it is no DICOM file that can be read")) from error
    if bad := [tag for tag, value in zip(tags, (study, series, uid), strict=True) if not is_uid(value)]:
        raise InputError(Fault("instance", "no-uid", f"{', '.join(bad)} is missing or no UID"))
    return Instance(study, series, uid, content)


def write_instance(folder: Path, instance: Instance) -> None:
    """Writes an instance below the folder of its study; it is on disk when this returns.

    Raises:
        ResourceError: If it cannot be written.
    """
    with atomic_path(folder / instance.path) as temporary:
        temporary.write_bytes(instance.content)
