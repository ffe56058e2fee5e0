"""Slices sorted into series, and those of a series into stacks, each of which could be one volume."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dicom.frames import Frame, Header, mark_name, tell_names
from pipeline.data.dicom.placing import STEP_TOLERANCE_MM, placing_problems, slice_steps

ORIENTATION_TOLERANCE = 1e-4
"""How far the direction cosines of one stack may differ."""
SPACING_TOLERANCE = 1e-4
"""How far the pixel spacing of one stack may differ, relative to it."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of one series that share orientation, size and spacing.

    Attributes:
        id: Short name, made of the series' UID, with a number where the series holds several stacks.
        series: SeriesInstanceUID.
        modality: Such as CT.
        description: Of the series.
        number: Of the series in the study.
        distinction: What tells it from the other stacks of its series; empty if it is the only one.
        differs: The rule under which it is told from them.
        frames: Sorted along the normal; empty if no file could be read as a slice.
        files: Where it lies.
        problems: Rule and message of everything that keeps it from being a volume.
    """

    id: str
    series: str
    modality: str
    description: str
    number: str
    distinction: str
    differs: str
    frames: tuple[Frame, ...]
    files: tuple[Path, ...]
    problems: tuple[tuple[str, str], ...]

    @property
    def step(self) -> float | None:
        """Median distance between slices, in mm."""
        return float(np.median(slice_steps(self.frames))) if len(self.frames) > 1 else None


def sort_stacks(headers: Sequence[Header]) -> list[Stack]:
    """Every series' stacks, in the order of series numbers; files that tell no series come last."""
    series: dict[str, list[Header]] = {}
    for header in headers:
        series.setdefault(header.series, []).append(header)
    stacks = [stack for uid, group in series.items() for stack in _series_stacks(uid, group)]
    return sorted(stacks, key=lambda s: (not s.series, len(s.number), s.number, s.id.split(".")[0]))


def merge_stacks(stacks: Sequence[Stack]) -> Stack:
    """Parallel stacks of one series as one, to be resampled."""
    first = stacks[0]
    frames = tuple(_along_normal(frame for stack in stacks for frame in stack.frames))
    files = tuple(dict.fromkeys(frame.path for frame in frames))
    merged = replace(first, id=first.id.split(".")[0], distinction="", frames=frames, files=files)
    mixed = ("mixed-sizes", "the slices differ in Rows and Columns or in PixelSpacing")
    return replace(merged, problems=(mixed, *placing_problems(frames)))


def are_parallel(stacks: Sequence[Stack]) -> bool:
    """Whether slices of all stacks could be resampled onto one grid."""
    frames = [stack.frames[0] for stack in stacks if stack.frames]
    return len(frames) == len(stacks) and all(_is_turned_alike(frames[0], frame) for frame in frames)


def _series_stacks(uid: str, headers: Sequence[Header]) -> Iterator[Stack]:
    first = headers[0]
    short = hashlib.sha256(uid.encode()).hexdigest()[:6] if uid else "unknown"
    problems = tuple(_file_problems(headers))
    frames = [frame for header in headers for frame in header.frames]
    groups: list[tuple[list[Frame], str, str]] = list(_groups(frames)) if frames else [([], "", "")]
    for number, (group, distinction, rule) in enumerate(groups, 1):
        ordered = tuple(_along_normal(group))
        yield Stack(
            id=short if len(groups) == 1 else f"{short}.{number}",
            series=uid,
            modality=first.modality,
            description=first.description,
            number=first.number,
            distinction=distinction,
            differs=rule,
            frames=ordered,
            files=tuple(dict.fromkeys(f.path for f in ordered)) or tuple(h.path for h in headers),
            problems=problems or tuple(placing_problems(ordered)),
        )


def _file_problems(headers: Sequence[Header]) -> Iterator[tuple[str, str]]:
    """Faults of single files, those alike told once."""
    found: dict[tuple[str, str], list[Path]] = {}
    for header in headers:
        for problem in header.problems:
            found.setdefault(problem, []).append(header.path)
    for (rule, message), paths in found.items():
        yield rule, f"{message} ({tell_names(path.name for path in paths)})"


def _groups(frames: Sequence[Frame]) -> Iterator[tuple[list[Frame], str, str]]:
    """Stacks of a series, largest first, with what tells each from the others and that rule's name."""
    by_plane = _cluster(frames, _is_alike)
    planes = {
        "slice-orientation": len(_cluster(frames, _is_turned_alike)) > 1,
        "slice-size": len({frame.size for frame in frames}) > 1,
        "pixel-spacing": len(_cluster(frames, _is_spaced_alike)) > 1,
        "several-stacks": len({frame.stack for frame in frames}) > 1,
    }
    rule = next((rule for rule, is_met in planes.items() if is_met), "")
    for plane in sorted(by_plane, key=len, reverse=True):
        told = f"stack {plane[0].stack}" if rule == "several-stacks" else ""
        for group, marks in _split_repeated(plane, ()):
            yield group, ", ".join((*([told] if told else []), *marks)), rule or "several-stacks"


def _cluster(frames: Iterable[Frame], is_alike: Callable[[Frame, Frame], bool]) -> list[list[Frame]]:
    clusters: list[list[Frame]] = []
    for frame in frames:
        home = next((cluster for cluster in clusters if is_alike(cluster[0], frame)), None)
        if home is None:
            clusters.append([frame])
        else:
            home.append(frame)
    return clusters


def _is_alike(one: Frame, other: Frame) -> bool:
    return (
        one.size == other.size
        and one.stack == other.stack
        and _is_spaced_alike(one, other)
        and _is_turned_alike(one, other)
    )


def _is_spaced_alike(one: Frame, other: Frame) -> bool:
    return bool(np.allclose(one.spacing, other.spacing, rtol=SPACING_TOLERANCE, atol=0))


def _is_turned_alike(one: Frame, other: Frame) -> bool:
    return bool(np.abs(one.orientation - other.orientation).max() <= ORIENTATION_TOLERANCE)


def _split_repeated(
    frames: list[Frame], marks: tuple[str, ...], but: tuple[str, ...] = ()
) -> Iterator[tuple[list[Frame], tuple[str, ...]]]:
    """Slices that lie where others lie, told apart by time, echo and the like.

    A mark counts if it makes no more groups than the place with most slices has slices: what changes with
    every slice tells nothing apart.
    """
    most = _most_at_one_place(frames)
    if most > 1:
        for tag in dict.fromkeys(tag for frame in frames for tag in frame.marks):
            groups: dict[str, list[Frame]] = {}
            for frame in frames:
                groups.setdefault(frame.marks.get(tag, ""), []).append(frame)
            if tag in but or not 1 < len(groups) <= most:
                continue
            if max(map(_most_at_one_place, groups.values())) < most:
                for value, group in sorted(groups.items(), key=lambda item: _natural(item[0])):
                    told = (*marks, f"{mark_name(tag)} {value or 'none'}")
                    yield from _split_repeated(group, told, (*but, tag))
                return
    yield frames, marks


def _natural(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


def _along_normal(frames: Iterable[Frame]) -> list[Frame]:
    known = list(frames)
    if not known:
        return known
    normal: NDArray[np.float64] = known[0].normal
    return sorted(known, key=lambda frame: float(normal @ frame.position))


def _most_at_one_place(frames: Sequence[Frame]) -> int:
    ordered = _along_normal(frames)
    steps = slice_steps(ordered)
    most = count = 1
    for step in steps:
        count = count + 1 if step < STEP_TOLERANCE_MM else 1
        most = max(most, count)
    return most
