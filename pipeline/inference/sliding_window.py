"""Scores of a whole volume from a network that sees one window at a time, finished and released in slabs.

Windows go along one axis. What no later window touches is handed out at once and leaves memory, so full-size
scores never exist. `docs/inference.md` counts the bytes and operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import torch
from torch import Tensor

from pipeline.inference.windows import Axes, Box, Windows
from pipeline.memory import is_out_of_memory
from transforms.cropping import crop

Network = Callable[[Tensor], Tensor]
"""`(B, channels, *window)` → `(B, C, *window)`."""


@dataclass(frozen=True, slots=True)
class Block:
    """A finished part of a volume.

    Attributes:
        origin: Its first voxel.
        scores: `(C, h, w, d)` float32, a view that is overwritten when the next block is asked for.
    """

    origin: Axes
    scores: Tensor


class WindowRunner:
    """Applies a network to windows of an image, in batches that fit into memory.

    Args:
        network: What is applied; its logits or features.
        window_size: Voxels per axis; with two, the network takes slices `(B, channels, H, W)`.
        flips: Whether to average over all mirrored copies of a window.
        batch_size: Windows, mirrored ones counted, per forward pass; halved whenever memory does not suffice.
        skips_empty: Whether windows in which every channel is constant are computed once per value.
        device: Where the network is.

    Attributes:
        num_windows: Windows that were asked for so far, mirrored copies not counted.
        num_skipped: Of these, how many were not computed.
    """

    def __init__(
        self,
        network: Network,
        window_size: Sequence[int],
        *,
        flips: bool,
        batch_size: int,
        skips_empty: bool,
        device: torch.device,
    ) -> None:
        self.network = network if len(window_size) == 3 else _on_slices(network)
        self.mirrored = _mirror_axes(len(window_size)) if flips else [()]
        self.batch_size = batch_size
        self.skips_empty = skips_empty
        self.device = device
        self.num_windows = 0
        self.num_skipped = 0
        self._empty: tuple[tuple[float, ...], Tensor] | None = None

    def run(self, image: Tensor, windows: Windows, starts: Iterable[Axes]) -> Iterator[tuple[Axes, Tensor]]:
        """Start and `(C, *window)` float32 scores of each window, in order; of mirrored copies their mean.

        Raises:
            torch.OutOfMemoryError: If not even one window fits.
        """
        pending = iter(starts)
        while group := list(islice(pending, max(1, self.batch_size // len(self.mirrored)))):
            self.num_windows += len(group)
            crops = [crop(image, start, windows.size) for start in group]
            scores = self._run_or_skip(crops) if self.skips_empty else self._run_group(crops)
            yield from zip(group, scores, strict=True)

    def _run_group(self, crops: Sequence[Tensor]) -> Tensor:
        batch = torch.stack(tuple(crops)).to(self.device, non_blocking=True)
        if len(self.mirrored) == 1:
            return self._apply(batch)
        outputs = self._apply(torch.cat([batch.flip(axes) for axes in self.mirrored]))
        total = outputs[: len(batch)]
        for number, axes in enumerate(self.mirrored[1:], 1):
            total += outputs[number * len(batch) : (number + 1) * len(batch)].flip(axes)
        return total.div_(len(self.mirrored))

    def _apply(self, batch: Tensor) -> Tensor:
        """Scores of a batch of any size, computed in parts no larger than `batch_size`."""
        parts, done = [], 0
        while done < len(batch):
            part = batch[done : done + self.batch_size]
            try:
                parts.append(self.network(part).float())
                done += len(part)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise torch.OutOfMemoryError("not even one window fits") from error
                self.batch_size = len(part) // 2
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _run_or_skip(self, crops: Sequence[Tensor]) -> list[Tensor]:
        values = [_constant_values(window) for window in crops]
        full = [window for window, value in zip(crops, values, strict=True) if value is None]
        computed = iter(self._run_group(full) if full else ())
        return [
            next(computed) if value is None else self._run_empty(window, value)
            for window, value in zip(crops, values, strict=True)
        ]

    def _run_empty(self, window: Tensor, value: tuple[float, ...]) -> Tensor:
        if self._empty is not None and self._empty[0] == value:
            self.num_skipped += 1
        else:
            self._empty = value, self._run_group([window])[0]
        return self._empty[1]


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

    Yields:
        Slabs in rising order, until they cover `box`.
    """
    buffer: _Buffer | None = None
    for start, scores in runner.run(image, windows, windows.along(axis, box)):
        if buffer is None:
            buffer = _Buffer(len(scores), windows.size[axis], box, axis, keep, normalises, scores.device)
        if start[axis] > buffer.done:
            yield buffer.finish(start[axis])
            buffer.release()
        buffer.add(scores, weights, start)
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


def _mirror_axes(dims: int) -> list[tuple[int, ...]]:
    axes = range(2, 2 + dims)
    return [chosen for num in range(dims + 1) for chosen in combinations(axes, num)]


def _on_slices(network: Network) -> Network:
    return lambda windows: network(windows[..., 0])[..., None]


def _constant_values(window: Tensor) -> tuple[float, ...] | None:
    lowest, highest = window.flatten(1).aminmax(dim=1)
    return tuple(lowest.tolist()) if bool((lowest == highest).all()) else None
