"""What a DICOM Structured Report says, read back from the file, and whether it is what was to be said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydicom import Dataset, dcmread

_GROUP: Final = "125007"
_TRACKING: Final = "112039"
_MOST_PRECISE: Final = 1e-6
"""Relative; a number in DICOM has 16 characters."""


@dataclass(frozen=True)
class Group:
    """What a measurement group says.

    Attributes:
        name: Its tracking identifier.
        numbers: By the code of their name.
        codes: Of names and values.
        references: Instances that it was measured on.
    """

    name: str
    numbers: Mapping[str, float]
    codes: tuple[tuple[str, str], ...]
    references: frozenset[str]


def read_groups(path: Path) -> list[Group]:
    """The measurement groups of a report, in its order."""
    return [_read_group(item) for item in _items(dcmread(path)) if _code(item) == _GROUP]


def _items(item: Dataset) -> Iterator[Dataset]:
    """An item and all below it, as pydicom reads them."""
    yield item
    for inner in item.get("ContentSequence") or ():
        yield from _items(inner)


def _code(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].CodeValue) if names else ""


def _read_group(item: Dataset) -> Group:
    inner = list(_items(item))[1:]
    return Group(
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


def is_same(found: Group, expected: Group) -> bool:
    """Whether a group says what was expected; codes beside it, such as sites and sides, may be there."""
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
