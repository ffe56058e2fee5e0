"""Which stack of a folder is meant: by a rule that is stated, never by a guess."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from pipeline.data.dicom.stacks import Stack, are_parallel, merge_stacks
from pipeline.errors import Fault, InputError

_NO_IMAGE = {
    "no-image",
    "missing-tag",
    "multi-frame",
    "photometric",
    "pixel-type",
    "too-few-slices",
    "deflated",
}
"""Rules of what was never meant to be a volume, and stands in nobody's way."""

_MENDABLE = {"mixed-sizes", "slice-step", "slice-shift", "slice-position", "shear"}
"""Rules that resampling mends."""


class Described(Protocol):
    """What has the words by which a series is found."""

    @property
    def id(self) -> str:
        """Short and unique."""

    @property
    def number(self) -> str:
        """Of the series."""

    @property
    def description(self) -> str:
        """In the words of the scanner."""


_Described = TypeVar("_Described", bound=Described)


@dataclass(frozen=True, slots=True)
class SeriesRule:
    """How an image is found among the DICOM series of an input.

    Attributes:
        pattern: The short id of a series or stack, its number, or its description, in which `*` and `?` stand
            for anything and of which a part is enough; whole matches go before parts, and case does not
            matter. None where there is only one that can be meant.
        is_regularised: Whether slices that are no regular grid are resampled onto one.
    """

    pattern: str | None = None
    is_regularised: bool = False


def choose_stack(where: str, stacks: Sequence[Stack], rule: SeriesRule) -> Stack:
    """The one stack that the rule means.

    Raises:
        InputError: If there is none, or there are several, with the candidates; or with all that is wrong
            with the only one.
    """
    found = list(stacks) if rule.pattern is None else match_series(stacks, rule.pattern)
    if not found:
        message = f"no series here is {rule.pattern!r}; there are: {tell_stacks(stacks)}"
        raise InputError(Fault(where, "no-series", message))
    if rule.pattern is None:
        found = [stack for stack in found if stack.series] or found
        found = [stack for stack in found if not _is_no_image(stack, found)] or found
    if rule.is_regularised and len(found) > 1 and _is_one_series(found) and are_parallel(found):
        found = [merge_stacks(found)] if _is_mixed_in_size(found) else found
    if len(found) > 1:
        raise InputError(_ambiguity(where, found))
    stack = found[0]
    _refuse_doubt(where, stacks, stack)
    problems = [p for p in stack.problems if not (rule.is_regularised and p[0] in _MENDABLE)]
    if problems:
        raise InputError(Fault(where, name, message) for name, message in problems)
    return stack


def match_series(series: Sequence[_Described], pattern: str) -> list[_Described]:
    """Those that a pattern means, as `SeriesRule` has it."""
    wanted = " ".join(pattern.lower().split())
    described = [(one, one.description.lower()) for one in series]
    ways = (
        [one for one in series if one.id == wanted],
        [one for one in series if one.id.split(".")[0] == wanted],
        [one for one in series if one.number == wanted],
        [one for one, words in described if words == wanted],
        [one for one, words in described if fnmatchcase(words, wanted)],
        [one for one, words in described if wanted and fnmatchcase(words, f"*{wanted}*")],
    )
    return next((found for found in ways if found), [])


def tell_stacks(stacks: Iterable[Stack]) -> str:
    """The candidates in words, at most eight of them."""
    told = [_tell(stack) for stack in stacks]
    more = f"; and {len(told) - 8} more" if len(told) > 8 else ""
    return "; ".join(told[:8]) + more


def _tell(stack: Stack) -> str:
    names = ", ".join(part for part in (stack.modality, stack.description, stack.distinction) if part)
    count = len(stack.frames)
    if not count:
        return f"{stack.id} ({names or 'no slices'})"
    columns, rows = stack.frames[0].size
    alone = f" {stack.frames[0].name}" if count == 1 else ""
    return f"{stack.id} ({names + ', ' if names else ''}{count} x {columns} x {rows}{alone})"


def _is_no_image(stack: Stack, others: Sequence[Stack]) -> bool:
    """Whether it was never meant to be a volume; a stray slice of another stack's series is in doubt."""
    rules = {name for name, _ in stack.problems}
    has_kin = any(other is not stack and other.series == stack.series for other in others)
    return bool(rules) and rules <= _NO_IMAGE and not has_kin


def _is_one_series(stacks: Sequence[Stack]) -> bool:
    return len({stack.series for stack in stacks}) == 1


def _is_mixed_in_size(stacks: Sequence[Stack]) -> bool:
    return stacks[0].differs in ("slice-size", "pixel-spacing") and not any(s.distinction for s in stacks)


def _ambiguity(where: str, found: Sequence[Stack]) -> Fault:
    if _is_one_series(found):
        what = {
            "slice-orientation": "orientation",
            "slice-size": "Rows and Columns",
            "pixel-spacing": "PixelSpacing",
        }.get(found[0].differs, "stack, time or echo")
        message = (
            f"the slices of this series differ in {what}; name one stack with --series: {tell_stacks(found)}"
        )
        return Fault(where, found[0].differs, message)
    folders = {path.parent for stack in found for path in stack.files}
    way = "name one with --series" + (", or its folder as the input" if len(folders) > 1 else "")
    return Fault(where, "several-series", f"several series could be meant; {way}: {tell_stacks(found)}")


def _refuse_doubt(where: str, stacks: Sequence[Stack], chosen: Stack) -> None:
    """Refuses a stack beside which lies a file that could be one of its slices, but cannot be read."""
    folders = {path.parent for path in chosen.files}
    doubts = [s for s in stacks if not s.series and s is not chosen and folders & {p.parent for p in s.files}]
    if doubts:
        raise InputError(Fault(where, name, message) for stack in doubts for name, message in stack.problems)
