"""DICOM PS3.15's basic confidentiality profile, applied to every level of a data set.

Which attribute is removed, emptied or replaced is dicom-anonymizer's table of the standard. Beyond the table:
no private attribute, no free text, no person's name and no value that is not understood stays, and what stays
is searched for the patient's name, ids and birth date, since the table cannot know what was typed where.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from dicomanonymizer.simpledicomanonymizer import initialize_actions
from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_is_retired
from pydicom.multival import MultiValue
from pydicom.uid import UID

from pipeline.privacy.pseudonyms import Pseudonyms

TABLE = "dicomfields_2026c"
EDITION = "DICOM PS3.15 2026c"

_FREE_TEXT = {"ST", "LT", "UT", "UC", "UR", "PN", "AE", "UN"}
_TYPED = {0x00620005, 0x00700081}  # SegmentLabel, ContentDescription: typed by people, and not in the table
_SHORT_TEXT = {"LO", "SH", "CS", "AS"}
_BINARY = {"OB", "OW", "OF", "OD", "OL", "OV"}
_IMAGE_GROUPS = {0x0028, 0x7FE0}  # whose binary values are pixels and their tables
_CHARACTER_SET = 0x00080005
_LEAST_TOKEN = 4
_TERMS = {
    *("original", "derived", "mixed", "primary", "secondary", "axial", "localizer", "water"),  # ImageType
    *("magnitude", "phase", "real", "imaginary"),  # ComplexImageComponent
    *("volume", "sampled", "distorted", "color", "monochrome", "tiled", "full", "sparse"),  # of many frames
    *("start", "admin", "none", "unknown"),  # DecayCorrection and others
}
"""Words of codes by which readers order, tell apart and scale slices. They stand in anybody's images, and so
tell nothing of somebody who is called so, such as the `PRIMARY CARE` that sent the patient."""

_TIME = r"[0-9.: ]*"


def remove_identity(dataset: Dataset, pseudonyms: Pseudonyms, patient: str) -> None:
    """Takes out of a data set, in place, what identifies a patient; pixels and geometry stay.

    Args:
        dataset: Of one image file.
        pseudonyms: By which UIDs and dates are replaced.
        patient: The patient's pseudonym.
    """
    tokens = _identifying_tokens(dataset)
    dataset.remove_private_tags()
    _clean(dataset, pseudonyms, patient, tokens)
    dataset.PatientName = dataset.PatientID = patient
    _say_so(dataset)


def patient_identity(dataset: Dataset) -> str:
    """What tells whose image it is: the id with its issuer; the study where there is no id."""
    issuer, number = (str(dataset.get(tag) or "").strip() for tag in ("IssuerOfPatientID", "PatientID"))
    return f"{issuer}|{number}" if number else f"study|{dataset.get('StudyInstanceUID') or ''}"


@cache
def _actions() -> dict[tuple[int, ...], str]:
    return {tag: action.__name__ for tag, action in initialize_actions(TABLE).items()}


def _clean(dataset: Dataset, pseudonyms: Pseudonyms, patient: str, tokens: set[str]) -> None:
    for tag in list(dataset.keys()):
        element = dataset[tag]
        action = _action(element)
        if element.VR == "UI":
            _map(element, lambda uid: uid if _is_registered(uid) else pseudonyms.uid(str(uid)))
        elif element.VR in ("DA", "DT") and element.tag.group != 0x0010:
            _map(element, lambda date: pseudonyms.date(patient, str(date)))
        elif element.VR == "TM" and element.tag.group != 0x0010:
            # Whole days are shifted, so that times keep their distances.
            _map(element, lambda time: str(time) if re.fullmatch(_TIME, str(time)) else "")
        elif action == "delete":
            del dataset[tag]
        elif action == "empty":
            element.value = None
        elif element.VR == "SQ":
            for item in element.value:
                _clean(item, pseudonyms, patient, tokens)
        elif element.VR in _SHORT_TEXT and not _is_for_decoding(element):
            _blank(element, tokens)


def _action(element: DataElement) -> str:
    """`delete`, `empty` or `keep`."""
    name = _named_action(element)
    if name == "delete" or _is_unknown(element):
        return "delete"
    if name.endswith("UID"):  # sequences of references, whose UIDs are replaced like all others
        return "keep"
    if name.startswith(("empty", "replace", "delete_or")):  # Z, D, X/Z and so on: what a viewer may ask for
        return "delete" if element.VR == "SQ" else "empty"
    return "empty" if element.VR in _FREE_TEXT or element.tag in _TYPED else "keep"


def _is_unknown(element: DataElement) -> bool:
    """Whether nobody can say what it holds: binary data, or what the standard of today does not have."""
    tag, kind = element.tag, element.VR
    if kind in _BINARY and tag.group not in _IMAGE_GROUPS:
        return True
    if not dictionary_has_tag(tag):
        return kind not in ("UI", "DA", "DT")
    return kind in ("LO", "SH") and dictionary_is_retired(tag)  # such as order numbers


def _named_action(element: DataElement) -> str:
    known = _actions()
    name = known.get((element.tag.group, element.tag.element))
    if name is not None:
        return name
    for pattern, action in known.items():
        if len(pattern) == 4:
            group, number, group_mask, number_mask = pattern
            is_met = element.tag.group & group_mask == group & group_mask
            if is_met and element.tag.element & number_mask == number & number_mask:
                return action
    return "keep"


def _map(element: DataElement, change: Callable[[Any], str]) -> None:
    if isinstance(element.value, MultiValue):
        element.value = [change(value) for value in element.value]
    elif element.value:
        element.value = change(element.value)


def _is_registered(uid: str) -> bool:
    """Whether the standard itself gave the UID, to a kind of object or a transfer syntax."""
    return UID(uid).name != uid


def _identifying_tokens(dataset: Dataset) -> set[str]:
    """Parts of names, ids and birth dates that are long enough to be told from chance, in lower case."""
    found: set[str] = set()
    for element in dataset.iterall():
        is_identity = element.VR == "PN" or (element.tag.group == 0x0010 and element.VR in ("LO", "SH", "DA"))
        if (is_identity or element.keyword == "AccessionNumber") and element.value:
            found |= {token for token in _tokens(str(element.value)) if len(token) >= _LEAST_TOKEN}
    return found


def _tokens(text: str) -> Iterator[str]:
    yield from re.findall(r"[^\W_]+", text.lower())


def _is_for_decoding(element: DataElement) -> bool:
    """Whether it is a code without which pixels or texts cannot be decoded, and that nobody types."""
    return element.VR == "CS" and (element.tag.group == 0x0028 or element.tag == _CHARACTER_SET)


def _blank(element: DataElement, tokens: set[str]) -> None:
    """Empties those values of a short text that name the patient all the same."""
    is_code = element.VR == "CS"
    _map(element, lambda value: "" if _tells(str(value).lower(), tokens, is_code) else value)


def _tells(text: str, tokens: set[str], is_code: bool) -> bool:
    """Whether a token stands in a text; in a code a name must be a word, as MARY is none in PRIMARY."""
    words = set(re.findall(r"[^\W\d_]+", text)) - _TERMS
    return any(token in (words if is_code and token.isalpha() else text) for token in tokens)


def _say_so(dataset: Dataset) -> None:
    """Marks the data set as de-identified, in the codes of PS3.16 CID 7050."""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = f"clinseg, {EDITION} basic profile, dates shifted"[:64]
    dataset.LongitudinalTemporalInformationModified = "MODIFIED"
    items = []
    for code, meaning in (
        ("113100", "Basic Application Confidentiality Profile"),
        ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    ):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "DCM", meaning
        items.append(item)
    dataset.DeidentificationMethodCodeSequence = items
