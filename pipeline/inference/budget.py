"""How a volume is cut so that its prediction stays within a memory budget, decided before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from pipeline.errors import Fault, ResourceError
from pipeline.inference.windows import Axes, Box, Windows
from pipeline.memory import format_need, format_size

_FLOAT_BYTES = 4
DECIDING_BYTES = 48 * 2**20
"""What resampling and deciding a chunk of voxels takes, with room to spare."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be swept over.

    Attributes:
        windows: Their positions.
        num_scores: Channels that are summed up per voxel.
        overlap: Planes that neighbouring parts share, per axis.
        normalises: Whether weights are summed up beside the scores.
        num_copies: Scores that are taken together per window: of mirrored copies and of several networks.
    """

    windows: Windows
    num_scores: int
    overlap: Axes
    normalises: bool
    num_copies: int = 1

    @property
    def axis(self) -> int:
        """The axis to sweep along: the one whose slabs are smallest."""
        return min(range(3), key=self._slab_voxels)

    @property
    def most_parts(self) -> int:
        """How often the volume can be cut."""
        return self.windows.shape[self._cut_axis]

    def boxes(self, num_parts: int) -> tuple[Box, ...]:
        """Cuts the volume into nearly equal parts along the longer axis across the sweep."""
        cut, shape = self._cut_axis, self.windows.shape
        edges = [round(part * shape[cut] / num_parts) for part in range(num_parts + 1)]
        return tuple(self._box(first, stop) for first, stop in pairwise(edges))

    def buffer_bytes(self, box: Box) -> int:
        """Bytes of the scores that are worked on at a time."""
        sizes = [stop - first for first, stop in box]
        sizes[self.axis] = min(self.windows.size[self.axis] + self.overlap[self.axis], sizes[self.axis])
        return _FLOAT_BYTES * (self.num_scores + self.normalises) * sizes[0] * sizes[1] * sizes[2]

    @property
    def window_bytes(self) -> int:
        """Bytes of the scores of one window."""
        return _FLOAT_BYTES * self.num_scores * math.prod(self.windows.size)

    @property
    def _cut_axis(self) -> int:
        return max((k for k in range(3) if k != self.axis), key=lambda k: self.windows.shape[k])

    def _box(self, first: int, stop: int) -> Box:
        whole = [(0, size) for size in self.windows.shape]
        whole[self._cut_axis] = first, min(stop + self.overlap[self._cut_axis], whole[self._cut_axis][1])
        return whole[0], whole[1], whole[2]

    def _slab_voxels(self, axis: int) -> int:
        shape = [*self.windows.shape]
        shape[axis] = min(self.windows.size[axis] + self.overlap[axis], shape[axis])
        return shape[0] * shape[1] * shape[2]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a volume is predicted.

    Attributes:
        axis: Along which windows go.
        boxes: Parts of the volume that are swept one after the other.
        batch_size: Windows per forward pass, mirrored copies counted.
        num_lanes: Forward passes at a time.
        num_windows: In all; those that touch two parts run twice and count twice.
        buffer_bytes: For the scores that are worked on.
        expected_bytes: Peak of all memory the budget is about; None without one.
    """

    axis: int
    boxes: tuple[Box, ...]
    batch_size: int
    num_lanes: int
    num_windows: int
    buffer_bytes: int
    expected_bytes: int | None

    def __str__(self) -> str:
        """One line for people."""
        parts = "1 part" if len(self.boxes) == 1 else f"{len(self.boxes)} parts"
        peak = "" if self.expected_bytes is None else f", peak {format_size(self.expected_bytes)}"
        return (
            f"{self.num_windows} windows along axis {self.axis} in {parts}, "
            f"{self.num_lanes * self.batch_size} at a time, "
            f"{format_size(self.buffer_bytes)} of scores{peak}"
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """What may be used and what is.

    Attributes:
        limit: Bytes the process (on a GPU: its tensors) may take.
        used: Bytes it takes already, or will in any case.
        per_window: Bytes of a forward pass for each window of its batch.
    """

    limit: int
    used: int
    per_window: int


def make_plan(work: Work, batch_size: int, num_lanes: int, memory: Memory | None = None) -> Plan:
    """Cuts a volume as seldom as the memory allows; then takes as many windows at a time.

    Args:
        work: What is to be swept over.
        batch_size: Windows per forward pass at most, mirrored copies counted.
        num_lanes: Forward passes at a time at most.
        memory: What may be used, in bytes; None for no limit.

    Raises:
        ResourceError: If no plan stays within the limit; it names the least that would do.
    """
    if memory is None:
        return _plan(work, 1, batch_size, num_lanes, None)
    free = memory.limit - memory.used - DECIDING_BYTES
    # Of several copies of a window, the first ones' scores wait while the others are computed.
    waiting = (work.num_copies > 1) * work.window_bytes
    for num_parts in range(1, work.most_parts + 1):
        buffer = max(work.buffer_bytes(box) for box in work.boxes(num_parts))
        batch = min(batch_size, (free - buffer) // max(1, memory.per_window + waiting))
        if batch >= 1:
            # With several lanes, scores are summed up while the next ones are computed.
            beside = free - buffer - batch * (waiting + work.window_bytes)
            lanes = max(1, min(num_lanes, beside // max(1, batch * memory.per_window)))
            scores = waiting + (lanes > 1) * work.window_bytes
            rest = batch * (lanes * memory.per_window + scores)
            return _plan(work, num_parts, batch, lanes, memory.used + DECIDING_BYTES + rest)
    least = memory.limit - free + buffer + memory.per_window + waiting
    message = (
        f"it cannot be predicted within {format_size(memory.limit)}; the least that would do is "
        f"{format_need(least)} (of that {format_size(memory.used)} are taken before the first window)"
    )
    raise ResourceError(Fault("max-memory", "budget-too-small", message))


def _plan(work: Work, num_parts: int, batch_size: int, num_lanes: int, rest: int | None) -> Plan:
    boxes = work.boxes(num_parts)
    buffer = max(work.buffer_bytes(box) for box in boxes)
    num_windows = sum(sum(1 for _ in work.windows.along(work.axis, box)) for box in boxes)
    expected = None if rest is None else rest + buffer
    return Plan(work.axis, boxes, batch_size, num_lanes, num_windows, buffer, expected)
