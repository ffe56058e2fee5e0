"""Sides in label names: left and right must not be mirrored into each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

# A word (`left_kidney`), part of a compound (`ParotidLeft`, but not `bright`), or a letter that stands apart
# (`Lung_L`, but not the vertebra `L1`).
_WORDS = re.compile(r"(?<![A-Za-z])(?:left|right)|Left|Right|(?<![A-Z])(?:LEFT|RIGHT)")
_LETTERS = re.compile(r"(?<![A-Za-z0-9])[LRlr](?![A-Za-z0-9])")
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}


def has_side(name: str) -> bool:
    """Whether a label is of one side, such as `LeftParotid`, `kidney_right` or `Lung_L`."""
    return mirrored_name(name) != name


def mirrored_name(name: str) -> str:
    """The name of the other side, written alike; the same name if it has no side."""

    def swapped(match: re.Match[str]) -> str:
        found = match[0]
        other = _OTHER[found.lower()]
        return other.upper() if found.isupper() else other.capitalize() if found[0].isupper() else other

    pattern = _WORDS if _WORDS.search(name) else _LETTERS
    return pattern.sub(swapped, name)


def left_right_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of labels that are each other's other side, in the order of the names."""
    known = list(names)
    pairs = ((name, mirrored_name(name)) for name in known)
    return [(one, two) for one, two in pairs if two in known and known.index(one) < known.index(two)]


def without_exchange(
    labels: Mapping[str, int], structures: Mapping[str, Sequence[int]], pairs: Iterable[tuple[str, str]]
) -> list[str]:
    """Names that would be wrong in a mirrored image in which the pairs of labels have changed places.

    Args:
        labels: Values by name.
        structures: Labels, or regions as unions of label values.
        pairs: Names of labels of the two sides.

    Returns:
        Labels of one side that have no partner, and structures that do not become that of the other side; one
        whose name has no side may become any.
    """
    swaps = {labels[one]: labels[other] for pair in pairs for one, other in (pair, pair[::-1])}
    regions = {name: frozenset(values) for name, values in structures.items()}
    alone = [name for name, value in labels.items() if has_side(name) and value not in swaps]
    for name, values in regions.items():
        mirrored = frozenset(swaps.get(value, value) for value in values)
        allowed = [regions.get(mirrored_name(name))] if has_side(name) else [*regions.values()]
        if mirrored not in allowed and name not in alone:
            alone.append(name)
    return alone
