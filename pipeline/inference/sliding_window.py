"""Scores of a whole volume from a network that sees one window at a time, finished and released in slabs.

Windows go along one axis. What no later window touches is handed out at once and leaves memory, so full-size
scores never exist. `docs/inference.md` counts the bytes and operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.inference.window_runner import WindowRunner
from pipeline.inference.windows import Axes, Box, Windows


@dataclass(frozen=True, slots=True)
class Block:
    """A finished part of a volume.

    Attributes:
        origin: Its first voxel.
        scores: `(C, h, w, d)` float32, a view that is overwritten when the next block is asked for.
    """

    origin: Axes
    scores: Tensor


def sweep(
    runner: WindowRunner,
    image: Tensor,
    windows: Windows,
    weights: Tensor,
    *,
    box: Box,
    axis: int,
    keep: int,
    normalises: bool,
    conclude: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Block]:
    """Blends the windows' scores over a part of a volume, and hands it out slab by slab.

    Args:
        runner: Gives the scores of windows.
        image: `(channels, H, W, D)` float32. Beyond it windows see 0.
        windows: Positions in the whole volume.
        weights: `(h, w, d)` of the voxels of a window.
        box: The part; it reaches over the whole volume along `axis`.
        axis: Along which windows go.
        keep: Planes of a slab that the next one begins with again.
        normalises: Whether to divide by the sum of weights. Without it scores are right up to a positive
            factor per voxel, which does not change a decision.
        conclude: What becomes of a window's scores before they are blended; gives them anew.

    Yields:
        Slabs in rising order, until they cover `box`.
    """
    buffer: _Buffer | None = None
    for start, mean in runner.run(image, windows, windows.along(axis, box)):
        scores = mean if conclude is None else conclude(mean)
        del mean
        if buffer is None:
            buffer = _Buffer(len(scores), windows.size[axis], box, axis, keep, normalises, scores.device)
        if start[axis] > buffer.done:
            yield buffer.finish(start[axis])
            buffer.release()
        buffer.add(scores, weights, start)
        del scores  # another pass takes its memory
    assert buffer is not None, "a box is covered by windows"
    yield buffer.finish(box[axis][1])


class _Buffer:
    """Sums of weighted scores of the planes that are still being worked on.

    Attributes:
        first: Plane of the volume that the buffer begins with.
        done: First plane that is not finished.
    """

    def __init__(
        self,
        channels: int,
        window: int,
        box: Box,
        axis: int,
        keep: int,
        normalises: bool,
        device: torch.device,
    ) -> None:
        shape = [stop - first for first, stop in box]
        self.depth = shape[axis] = min(window + keep, shape[axis])
        self.box, self.axis, self.keep = box, axis, keep
        self.first = self.done = box[axis][0]
        self.sums = torch.zeros(channels, *shape, device=device)
        self.weights = torch.zeros(1, *shape, device=device) if normalises else None

    def add(self, scores: Tensor, weights: Tensor, start: Axes) -> None:
        inner, outer = [slice(None)], [slice(None)]
        for k, (begin, size) in enumerate(zip(start, weights.shape, strict=True)):
            origin, stop = (self.first, self.box[k][1]) if k == self.axis else self.box[k]
            low, high = max(begin, origin), min(begin + size, stop)
            inner.append(slice(low - begin, high - begin))
            outer.append(slice(low - origin, high - origin))
        share = weights[tuple(inner[1:])]
        self.sums[tuple(outer)].addcmul_(scores[tuple(inner)], share)
        if self.weights is not None:
            self.weights[tuple(outer)] += share

    def finish(self, stop: int) -> Block:
        """All planes before `stop`, normalised; the buffer still holds them."""
        if self.weights is not None:
            new = (self.axis + 1, self.done - self.first, stop - self.done)
            self.sums.narrow(*new).div_(self.weights.narrow(*new))
        self.done = stop
        origin = [first for first, _ in self.box]
        origin[self.axis] = self.first
        return Block((origin[0], origin[1], origin[2]), self.sums.narrow(self.axis + 1, 0, stop - self.first))

    def release(self) -> None:
        """Makes room for new planes, all finished ones but `keep` leaving."""
        num = max(0, self.done - self.keep - self.first)
        self.first += num
        for tensor in (self.sums, self.weights):
            if num and tensor is not None:
                _shift(tensor, self.axis + 1, num)


def _shift(tensor: Tensor, dim: int, num: int) -> None:
    """Moves everything `num` places to the front, piece by piece: a piece never overlaps its new place."""
    size = tensor.shape[dim]
    for at in range(0, size - num, num):
        length = min(num, size - num - at)
        tensor.narrow(dim, at, length).copy_(tensor.narrow(dim, at + num, length))
    tensor.narrow(dim, size - num, num).zero_()
