"""`clinseg pacs push`: DICOM files to a PACS."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread

from pipeline.data.cases import exists
from pipeline.data.dicom import find_dicom_files
from pipeline.errors import Fault, InputError
from pipeline.pacs.address import DEFAULT_AET, check_aet, parse_address
from pipeline.pacs.connecting import connect
from pipeline.pacs.instances import is_uid
from pipeline.progress import progress_bar

_META = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")


@dataclass(frozen=True, slots=True)
class Pushed:
    """What came of it.

    Attributes:
        num_files: That the PACS acknowledged.
        faults: Why others are not there.
    """

    num_files: int
    faults: tuple[Fault, ...]


def push(inputs: Sequence[Path], target: str, aet: str = DEFAULT_AET) -> Pushed:
    """Sends DICOM files to a PACS, as they are.

    Args:
        inputs: Files, folders with DICOM inside, or a DICOMDIR.
        target: Address of the PACS.
        aet: Our title, for a PACS that speaks DIMSE.

    Raises:
        ConfigError: If an argument cannot be.
        InputError: If there is nothing to send.
        ServiceError: If the PACS cannot be reached, or broke off; what it acknowledged it has, and
            sending all again harms nothing.
    """
    pacs = connect(parse_address(target, "--to"), check_aet(aet, "--aet"))
    files, faults = _find(inputs)
    if not files:
        raise InputError(faults or [Fault(str(inputs[0]), "no-images", "no DICOM file lies here")])
    with progress_bar("Sending files", len(files)) as advance:
        refused = pacs.send(files, advance)
    faults += [Fault(str(path), "not-stored", reason) for path, reason in refused.items()]
    return Pushed(len(files) - len(refused), tuple(faults))


def _find(inputs: Sequence[Path]) -> tuple[list[Path], list[Fault]]:
    """The files behind the inputs that can be sent, and why others cannot."""
    files: dict[Path, None] = {}
    faults = []
    for path in inputs:
        if not exists(path):
            faults.append(Fault(str(path), "missing-file", "no such file or folder; check the path"))
            continue
        for file in find_dicom_files(path):
            if _is_sendable(file):
                files[file] = None
            else:
                message = "it is no DICOM file with a header that says what it is; it is not sent"
                faults.append(Fault(str(file), "unreadable", message))
    return list(files), faults


def _is_sendable(path: Path) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):  # pydicom quotes the values it warns about
            meta = dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).file_meta
            return all(is_uid(str(meta.get(name) or "")) for name in _META)
    except Exception:  # a parser fed with damaged bytes may raise anything
        return False
