"""One DICOM image at a time: read, cleaned, written under a name that tells nothing, and read again."""

from __future__ import annotations

import secrets
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, DeflatedExplicitVRLittleEndian

from pipeline.errors import ConfigError, Fault, FaultError, InputError, IntegrityError
from pipeline.files import atomic_path
from pipeline.privacy.profile import patient_identity, remove_identity
from pipeline.privacy.pseudonyms import Pseudonyms

_LEAST_KEY = 16
_LARGEST = 2**30  # bytes of an inflated file
_BEFORE_META = 132 + 12  # bytes of preamble, prefix, and the element that tells the length of the rest
_PRINTED_ON = {"US", "SC", "OT", "XC", "ES", "XA", "RF", "DX", "CR", "IO", "GM"}
"""Modalities that often print names into pixels."""

_SEGMENTATIONS = "1.2.840.10008.5.1.4.1.1.66."
"""How UIDs begin of segmentations, label maps and surfaces, and of other objects drawn over images."""

_HEADS = ("head", "brain", "skull", "face", "neck", "sinus", "orbit", "schadel", "kopf", "cereb", "neuro")
_SCANNED = {"CT", "MR", "PT"}


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What became of one image.

    Attributes:
        file: Where it lies now.
        series: New UID of its series.
        warnings: Rule and message of what a person should look at.
    """

    file: Path
    series: str
    warnings: tuple[tuple[str, str], ...]


def read_key(path: Path) -> bytes:
    """Reads the secret key, or makes one of 32 random bytes if there is no such file.

    Raises:
        ConfigError: If it is shorter than 16 bytes, or cannot be read.
    """
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(secrets.token_hex(32), encoding="ascii")
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        message = f"the key cannot be read ({(error.strerror or 'error').lower()})"
        raise ConfigError(Fault(str(path), "key", message)) from error
    if len(key) < _LEAST_KEY:
        message = f"a key has at least {_LEAST_KEY} bytes; name a file that is not there, and one is made"
        raise ConfigError(Fault(str(path), "key", message))
    return key


def clean_dicom(path: Path, folder: Path, pseudonyms: Pseudonyms) -> Cleaned:
    """Writes `folder/<patient>/<series>/<image>.dcm` without what identifies the patient.

    Raises:
        InputError: If the file is damaged, is no image, says that text is burned into its pixels, or has the
            UID of another image that was written there. The fault carries no more of it than its place.
        ResourceError: If the file cannot be written.
        IntegrityError: If, read again, the pixels are not those of before.
    """
    with _guarding(path):
        _refuse_bomb(path)
        dataset = dcmread(path)
        dataset.walk(lambda *_: None)  # every value is parsed now, or raises now
        _refuse(path, dataset)
        found = tuple(_doubts(dataset))
        pixels = bytes(dataset.PixelData)
        instance = str(dataset.get("SOPInstanceUID") or path)
        patient = pseudonyms.patient(patient_identity(dataset))
        remove_identity(dataset, pseudonyms, patient)
        series = str(dataset.get("SeriesInstanceUID") or "")
        _replace_file_meta(dataset)
        target = folder / patient / pseudonyms.file_name(series) / f"{pseudonyms.file_name(instance)}.dcm"
        with atomic_path(target) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
            if bytes(dcmread(temporary).PixelData) != pixels:
                message = "read back from disk, the pixels are not those of the image; check the disk"
                raise IntegrityError(Fault(str(path), "write-not-verified", message))
            if target.exists() and target.read_bytes() != temporary.read_bytes():
                message = (
                    "another image with the same SOPInstanceUID was written before it, and they differ; it "
                    "was left out, find out which of them is right"
                )
                raise InputError(Fault(str(path), "duplicate-instance", message))
    return Cleaned(target, series, found)


@contextmanager
def _guarding(path: Path) -> Iterator[None]:
    """Makes a fault of whatever a parser or writer raises that is fed with a damaged file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom quotes the values it warns about
            yield
    except FaultError:
        raise
    except Exception as error:  # damaged bytes make parsers and writers raise anything
        message = "the file is damaged, or no whole DICOM file; fetch it again from its source"
        raise InputError(Fault(str(path), "unreadable", message)) from error


def _refuse_bomb(path: Path) -> None:
    """Refuses a file that is deflated as a whole and would fill the memory when it is read."""
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(_BEFORE_META + int(meta.FileMetaInformationGroupLength))
        while size <= _LARGEST and (block := inflater.unconsumed_tail or file.read(2**20)):
            size += len(inflater.decompress(block, 2**20))
    if size > _LARGEST:
        size_told = f"more than {_LARGEST // 2**30} GiB"
        message = f"it is deflated and would inflate to {size_told}; it was left out, convert it first"
        raise InputError(Fault(str(path), "too-large", message))


def _refuse(path: Path, dataset: Dataset) -> None:
    """Refuses what cannot be written again as a whole file, and what no rule on attributes can clean."""
    needed = ("SOPClassUID", "SOPInstanceUID")
    missing = [name for name in needed if not dataset.get(name)]
    if not dataset.file_meta.get("TransferSyntaxUID"):
        missing.append("TransferSyntaxUID")
    if missing:
        message = f"{', '.join(missing)} missing, without which it is no DICOM file; fetch it from its source"
        raise InputError(Fault(str(path), "missing-tag", message))
    # Segmentations have pixels too, and beside them what somebody typed about each structure.
    is_drawn = str(dataset.SOPClassUID).startswith(_SEGMENTATIONS) or dataset.get("Modality") == "SEG"
    if is_drawn or "PixelData" not in dataset:
        what = "a segmentation, say" if is_drawn else "a report, say"
        message = f"it is no image (but {what}), in which names may stand anywhere; it was left out"
        raise InputError(Fault(str(path), "no-image", message))
    if dataset.get("BurnedInAnnotation") == "YES":
        message = "it says that text is burned into its pixels; it was left out, paint over it first"
        raise InputError(Fault(str(path), "burned-in", message))


def _doubts(dataset: Dataset) -> list[tuple[str, str]]:
    """What no rule on attributes can take out."""
    found = []
    modality = str(dataset.get("Modality") or "")
    if dataset.get("BurnedInAnnotation") != "NO" and modality in _PRINTED_ON:
        message = f"{modality} images often have names printed into their pixels; look at them"
        found.append(("burned-in", message))
    places = " ".join(str(dataset.get(tag) or "") for tag in ("BodyPartExamined", "StudyDescription"))
    places += f" {dataset.get('SeriesDescription') or ''} {dataset.get('ProtocolName') or ''}"
    is_head = any(word in places.lower() for word in _HEADS)
    if dataset.get("RecognizableVisualFeatures") == "YES" or (modality in _SCANNED and is_head):
        message = "a face may be recognised in a rendering of it; deface it before it leaves the house"
        found.append(("face", message))
    return found


def _replace_file_meta(dataset: Dataset) -> None:
    """A header and a preamble of our own: senders, receivers and hidden bytes stay behind."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID")
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID")
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    dataset.file_meta = meta
    dataset.preamble = bytes(128)
