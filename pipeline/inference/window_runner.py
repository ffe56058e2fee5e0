"""A network, or an ensemble, applied to windows: in batches, mirrored copies and lanes, as memory allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import combinations, islice

import torch
from torch import Tensor

from pipeline.inference.windows import Axes, Windows
from pipeline.memory import is_out_of_memory
from transforms.cropping import crop
from transforms.laterality import Laterality

Network = Callable[[Tensor], Tensor]
"""`(B, channels, *window)` → `(B, C, *window)`."""


# More than lanes that began together can give at once.
_READY_IN_A_ROW = 8


class WindowRunner:
    """Applies a network, or those of an ensemble, to windows of an image, in passes that fit into memory.

    A pass holds copies of windows for one network. The other networks see the same copies next, so that their
    scores are summed up before others are computed; order and number of sums depend on nothing else.

    On a CPU two passes side by side, each on half of the cores, take less time than one after the other on
    all of them (docs/benchmarks/inference.md); what they give is summed up meanwhile.

    Args:
        networks: What is applied; logits or features of each. With several lanes they are called from several
            threads.
        window_size: Voxels per axis; with two, a network takes slices `(B, channels, H, W)`.
        flipped_axes: Axes of a window along which copies are mirrored, all of which are averaged.
        laterality: Channels of the scores that change places in a copy mirrored from left to right.
        batch_size: Windows, mirrored ones counted, per forward pass; halved whenever memory does not suffice.
        num_lanes: Forward passes at a time; one as soon as memory does not suffice, or as passes are done
            sooner than their scores are summed up.
        skips_empty: Whether windows in which every channel is constant are computed once per value.
        joins: Whether the networks' scores stand side by side, one network's channels after the other's,
            instead of their mean.
        device: Where the networks are.

    Attributes:
        num_skipped: Windows that were not computed so far.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        window_size: Sequence[int],
        *,
        flipped_axes: Sequence[int],
        batch_size: int,
        num_lanes: int,
        skips_empty: bool,
        device: torch.device,
        laterality: Laterality | None = None,
        joins: bool = False,
    ) -> None:
        self.networks = [net if len(window_size) == 3 else _on_slices(net) for net in networks]
        self.mirrored = mirrorings(flipped_axes)
        self.laterality = laterality
        self.batch_size = batch_size
        self.num_lanes = num_lanes
        self.skips_empty = skips_empty
        self.joins = joins
        self.device = device
        self.num_skipped = 0

    def run(self, image: Tensor, windows: Windows, starts: Iterable[Axes]) -> Iterator[tuple[Axes, Tensor]]:
        """Start and `(C, *window)` float32 scores of each window, in order: means over copies and networks.

        Raises:
            torch.OutOfMemoryError: If not even one window fits.
        """
        visits: deque[_Visit] = deque()
        copies = self._visit(image, windows, starts, visits)
        num_summed = len(self.mirrored) * (1 if self.joins else len(self.networks))
        empty = torch.empty(0)  # until the first such window has been computed
        for scores in (all_scores := self._compute(copies)):
            while visits[0].is_repeated:
                yield visits.popleft().start, empty
            visit = visits.popleft()
            for mirrored in islice(all_scores, len(self.mirrored) - 1):
                scores.add_(mirrored)
            if num_summed > 1:
                scores.div_(num_summed)
            if visit.value is not None:
                empty = scores
            yield visit.start, scores
            del scores  # another pass takes its memory
        for visit in visits:
            yield visit.start, empty

    def _visit(
        self, image: Tensor, windows: Windows, starts: Iterable[Axes], visits: deque[_Visit]
    ) -> Iterator[_Copy]:
        """All copies of windows that are to be computed; every window's visit is noted before its copies."""
        latest = None
        for start in starts:
            window = crop(image, start, windows.size)
            value = _constant_values(window) if self.skips_empty else None
            is_repeated = value is not None and value == latest
            visits.append(_Visit(start, value, is_repeated))
            if is_repeated:
                self.num_skipped += 1
                continue
            latest = latest if value is None else value
            for axes in self.mirrored:
                yield _Copy(window, axes)

    def _compute(self, copies: Iterator[_Copy]) -> Iterator[Tensor]:
        """Scores `(C, *window)` of one copy after the other, turned back; several networks' as one."""
        outcomes = self._run_passes(self._cut_into_passes(copies))
        for scores in outcomes:
            for others in islice(outcomes, len(self.networks) - 1):
                self._take_in(scores, others)
            while scores:
                yield scores.pop(0)

    def _take_in(self, scores: list[Tensor], others: list[Tensor]) -> None:
        """Adds another network's scores of the same copies, which leave memory by it."""
        for k in range(len(scores)):
            other = others.pop(0)
            scores[k] = torch.cat((scores[k], other)) if self.joins else scores[k].add_(other)

    def _cut_into_passes(self, copies: Iterator[_Copy]) -> Iterator[_Pass]:
        for some in iter(lambda: list(islice(copies, self.batch_size)), []):
            for network in self.networks:
                yield _Pass(network, some)

    def _run_passes(self, passes: Iterator[_Pass]) -> Iterator[list[Tensor]]:
        """The scores of each pass, in order."""
        if self.num_lanes > 1:
            num_threads = torch.get_num_threads()
            share = max(1, num_threads // self.num_lanes)
            try:
                with ThreadPoolExecutor(
                    self.num_lanes, initializer=torch.set_num_threads, initargs=(share,)
                ) as pool:
                    yield from self._run_ahead(pool, passes)
            finally:
                torch.set_num_threads(num_threads)
        # All of them, or those that are left when lanes are given up.
        yield from map(self._forward, passes)

    def _run_ahead(self, pool: ThreadPoolExecutor, passes: Iterator[_Pass]) -> Iterator[list[Tensor]]:
        """The scores of passes side by side, until there are no more or lanes are given up."""
        ahead = deque((some, pool.submit(self._forward, some)) for some in islice(passes, self.num_lanes))
        num_ready = 0  # passes in a row that nobody had to wait for
        while ahead:
            some, future = ahead.popleft()
            num_ready = num_ready + 1 if future.done() else 0
            if num_ready == _READY_IN_A_ROW:
                self.num_lanes = 1
            try:
                scores = future.result()
            except torch.OutOfMemoryError:
                # Alone it may still fit.
                wait([other for _, other in ahead])
                self.num_lanes = 1
                scores = self._forward(some)
            del some, future
            if self.num_lanes > 1:
                for following in islice(passes, self.num_lanes - len(ahead)):
                    ahead.append((following, pool.submit(self._forward, following)))
            yield scores

    def _forward(self, some: _Pass) -> list[Tensor]:
        """One forward pass, or several smaller ones if memory does not suffice."""
        network, copies = some.network, some.copies
        try:
            # Threads have an inference mode of their own.
            with torch.inference_mode():
                windows = [_mirror(copy.window, copy.axes) for copy in copies]
                batch = torch.stack(windows) if len(windows) > 1 else windows[0][None]
                outputs = network(batch.to(self.device, non_blocking=True)).float()
                return [self._turn_back(scores, copy) for scores, copy in zip(outputs, copies, strict=True)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(copies) == 1:
                raise torch.OutOfMemoryError("not even one window fits") from error
        self.batch_size = half = len(copies) // 2
        parts = [_Pass(network, copies[at : at + half]) for at in range(0, len(copies), half)]
        return [scores for part in parts for scores in self._forward(part)]

    def _turn_back(self, scores: Tensor, copy: _Copy) -> Tensor:
        scores = _mirror(scores, copy.axes)
        if self.laterality is None or 1 + self.laterality.axis not in copy.axes:
            return scores
        return scores[list(self.laterality.partners)]


@dataclass(frozen=True, slots=True)
class _Visit:
    """A window's turn.

    Attributes:
        start: Its first voxel.
        value: Of every channel, if each holds but one and such windows are looked for.
        is_repeated: Whether the latest window like that held the same.
    """

    start: Axes
    value: tuple[float, ...] | None
    is_repeated: bool


@dataclass(frozen=True, slots=True)
class _Copy:
    """A window `(channels, *window)` and the axes along which the network sees it mirrored."""

    window: Tensor
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Pass:
    """Copies of windows that a network sees together."""

    network: Network
    copies: Sequence[_Copy]


def _mirror(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    return tensor.flip(axes) if axes else tensor


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """What to flip for each mirrored copy: all choices of `axes`, none first, as axes of `(C, …)`."""
    shifted = [axis + 1 for axis in axes]
    return [chosen for num in range(len(axes) + 1) for chosen in combinations(shifted, num)]


def _on_slices(network: Network) -> Network:
    return lambda windows: network(windows[..., 0])[..., None]


def _constant_values(window: Tensor) -> tuple[float, ...] | None:
    lowest, highest = window.flatten(1).aminmax(dim=1)
    return tuple(lowest.tolist()) if bool((lowest == highest).all()) else None
