"""What a plan needs to know of a study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

Axes = tuple[float, float, float]
"""One number per anatomical axis: left-right, back-front, down-up, whatever the stored order."""

_AIR_HU = (-1200.0, -900.0)


@dataclass(frozen=True, slots=True)
class ChannelIntensities:
    """Intensities of one channel over a whole image, in its own unit.

    Attributes:
        low: Percentile 0.5.
        middle: Median.
        high: Percentile 99.5.
        mean: Mean.
        deviation: Standard deviation.
    """

    low: float
    middle: float
    high: float
    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class StructureSize:
    """One structure in one case.

    Attributes:
        voxels: How many it has.
        ml: Their volume.
        thickness_mm: Mean length of the runs of its voxels along each axis: how thick it is there.
    """

    voxels: int
    ml: float
    thickness_mm: Axes


@dataclass(frozen=True, slots=True)
class CaseFingerprint:
    """One case, its axes in anatomical order.

    Attributes:
        case: Id.
        orientation: Of the array as stored, such as `LPS`.
        shape: Voxels.
        spacing: Millimetres per voxel.
        content: Voxels of the box that holds everything but air.
        channels: Intensities, by channel.
        structures: By name, those that occur.
    """

    case: str
    orientation: str
    shape: Axes
    spacing: Axes
    content: Axes
    channels: tuple[ChannelIntensities, ...]
    structures: Mapping[str, StructureSize]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A study; medians are over all cases, those of a structure over the cases that have it.

    Attributes:
        channels: Names of the image channels.
        labels: Value of each label name, background included.
        structures: Values of what is learned and measured: of each foreground label, or of each region.
        num_patients: How many patients the cases are of.
        folds: Those that the manifest gives.
        cases: In its order.
    """

    channels: tuple[str, ...]
    labels: Mapping[str, int]
    structures: Mapping[str, tuple[int, ...]]
    num_patients: int
    folds: tuple[int, ...]
    cases: tuple[CaseFingerprint, ...]

    @property
    def spacing(self) -> Axes:
        """Median spacing in mm."""
        return _median_axes([case.spacing for case in self.cases])

    @property
    def extent_mm(self) -> Axes:
        """Median size of the content."""
        return _median_axes([_times(case.content, case.spacing) for case in self.cases])

    @property
    def sizes(self) -> dict[str, list[StructureSize]]:
        """Per structure its size in every case that has it."""
        return {
            name: [case.structures[name] for case in self.cases if name in case.structures]
            for name in self.structures
        }

    @property
    def is_ct(self) -> bool:
        """Whether every channel is a CT: the manifest says so, or most cases have air of about -1000."""
        return all(
            name.strip().upper() == "CT" or self._has_hounsfield_air(index)
            for index, name in enumerate(self.channels)
        )

    def to_json(self) -> str:
        """Everything, for people and programs to read."""
        told = {"spacing": self.spacing, "extent_mm": self.extent_mm, "is_ct": self.is_ct}
        return json.dumps(told | asdict(self), indent=1, ensure_ascii=False) + "\n"

    def _has_hounsfield_air(self, channel: int) -> bool:
        lows = [case.channels[channel].low for case in self.cases]
        return 5 * sum(_AIR_HU[0] <= low <= _AIR_HU[1] for low in lows) >= 4 * len(lows)


def _median_axes(rows: Sequence[Axes]) -> Axes:
    first, second, third = (median(along) for along in zip(*rows, strict=True))
    return first, second, third


def _times(one: Axes, other: Axes) -> Axes:
    return one[0] * other[0], one[1] * other[1], one[2] * other[2]
