"""Networks slid over a whole volume within the memory there is, whatever becomes of what they give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from pipeline.config import SlidingSection
from pipeline.errors import Fault, IntegrityError, ResourceError
from pipeline.inference.budget import Memory, Plan, Work, make_plan
from pipeline.inference.sliding_window import sweep
from pipeline.inference.window_runner import Network, WindowRunner
from pipeline.inference.windows import Axes, Box, lay_windows, weigh_voxels
from pipeline.memory import available_bytes, format_need, format_size, measure_peak, resident_bytes
from pipeline.precision import autocast, inference_dtype
from transforms.laterality import Laterality

_LARGEST_BATCH = 32
# Each takes the memory of a window's forward pass; two were measured.
_MOST_LANES = 4


class Consumer(Protocol):
    """Makes something of finished blocks of a volume."""

    @property
    def overlap(self) -> Axes:
        """Per axis of the network's grid, how many planes a block must share with the one before."""

    @property
    def num_bytes(self) -> int:
        """What its result takes on the host."""

    def add(self, scores: Tensor, origin: Axes) -> None:
        """Takes `(C, h, w, d)` scores of a block, a view that is overwritten afterwards, and its first voxel.

        Raises:
            FloatingPointError: If scores are not numbers.
        """


@dataclass(frozen=True, slots=True)
class Sweep:
    """How a volume was swept over.

    Attributes:
        plan: How it was cut.
        num_skipped: Windows that needed no forward pass, since they held nothing.
    """

    plan: Plan
    num_skipped: int


class Engine:
    """Slides networks over volumes and hands on what they give, blended, block by block.

    Args:
        networks: What is applied to windows, on `device`.
        section: Overlap, blending and batches.
        window_size: Voxels per axis; with two axes, slices along the last array axis are seen alone.
        device: Where to compute.
        mixed_precision: Whether the networks may compute in 16 bits on a GPU. Scores are summed in 32.
        flipped_axes: Axes of a window along which copies are mirrored, all of which are averaged.
        laterality: Channels of the scores that change places in a copy that is mirrored from left to right.
        joins: Whether the networks' scores stand side by side; else their mean is blended.
        conclude: What becomes of a window's mean scores before they are blended.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        section: SlidingSection,
        window_size: Sequence[int],
        device: torch.device,
        *,
        mixed_precision: bool,
        flipped_axes: Sequence[int] = (),
        laterality: Laterality | None = None,
        joins: bool = False,
        conclude: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.networks = list(networks)
        self.section = section
        self.window_size = tuple(window_size)
        self.device = device
        self._flipped_axes = tuple(flipped_axes)
        self._laterality = laterality
        self._joins = joins
        self._conclude = conclude
        self._dtype = inference_dtype(device, mixed=mixed_precision)
        self._weights = weigh_voxels(self.window_size, section.blending, device)
        self._num_copies = 2 ** len(self._flipped_axes) * len(self.networks)
        self._window_bytes: dict[tuple[int, ...], int] = {}

    def sweep(
        self,
        image: Tensor,
        consumer: Consumer,
        num_scores: int,
        *,
        normalises: bool,
        beside_bytes: int = 0,
        max_memory: int | None = None,
        on_plan: Callable[[Plan], None] = lambda plan: None,
    ) -> Sweep:
        """Sweeps over one image.

        Args:
            image: `(channels, H, W, D)` float32, on the network's grid.
            consumer: Is given all of the volume, block by block.
            num_scores: Channels of the scores of a window, and no fewer than what is blended and what the
                consumer makes of a block take together.
            normalises: Whether scores are divided by the sum of the windows' weights.
            beside_bytes: What else it takes on the device meanwhile.
            max_memory: Bytes that this process, and on a GPU its tensors, may take at their peak. If None,
                what is free.
            on_plan: Is told the plan before the first window.

        Raises:
            ResourceError: If no plan keeps within that memory, or it did not suffice after all.
            IntegrityError: If the networks' scores are not numbers.
        """
        height, width, depth = image.shape[1:]
        windows = lay_windows(
            (height, width, depth), self.window_size, self.section.overlap, self.section.placement
        )
        work = Work(windows, num_scores, consumer.overlap, normalises, self._num_copies)
        if self.section.skip_empty:
            beside_bytes += work.window_bytes  # the scores of an empty window are kept
        try:
            with torch.inference_mode():
                plan, image = self._plan(work, image, consumer.num_bytes, beside_bytes, max_memory)
                on_plan(plan)
                runner = self._build_runner(plan)
                for box in plan.boxes:
                    self._sweep_box(runner, image, work, consumer, box)
        except (torch.OutOfMemoryError, MemoryError) as error:
            message = "not even one window fits into the memory that is free; end other programs"
            raise ResourceError(Fault("prediction", "out-of-memory", message)) from error
        except FloatingPointError as error:
            message = f"{error}; the model is damaged or its precision does not suffice, train it again"
            raise IntegrityError(Fault("prediction", "not-a-number", message)) from error
        return Sweep(plan, runner.num_skipped)

    def check_host(self, num_bytes: int, what: str, max_memory: int | None, advice: str = "") -> None:
        """Refuses what the host cannot hold besides what is there.

        On a GPU nothing is known of the host's memory but what is allowed.

        Raises:
            ResourceError: If it does not fit.
        """
        if max_memory is None:
            if self.device.type != "cpu":
                return
            free = available_bytes()  # first, since it may lower what is taken
            max_memory = resident_bytes() + free
        needed = resident_bytes() + num_bytes
        if needed > max_memory:
            message = f"{what} takes {format_need(needed)}, {format_size(max_memory)} are allowed; allow more"
            raise ResourceError(Fault("max-memory", "budget-too-small", message + advice))

    def _sweep_box(
        self, runner: WindowRunner, image: Tensor, work: Work, consumer: Consumer, box: Box
    ) -> None:
        # A function of its own: when it returns, the box's scores have left memory before the next begins.
        blocks = sweep(
            runner,
            image,
            work.windows,
            self._weights,
            box=box,
            axis=work.axis,
            keep=work.overlap[work.axis],
            normalises=work.normalises,
            conclude=self._conclude,
        )
        for block in blocks:
            consumer.add(block.scores, block.origin)

    def _build_runner(self, plan: Plan) -> WindowRunner:
        return WindowRunner(
            [partial(self._forward, network) for network in self.networks],
            self.window_size,
            joins=self._joins,
            flipped_axes=self._flipped_axes,
            laterality=self._laterality,
            batch_size=plan.batch_size,
            num_lanes=plan.num_lanes,
            skips_empty=self.section.skip_empty,
            device=self.device,
        )

    def _plan(
        self, work: Work, image: Tensor, result_bytes: int, beside_bytes: int, max_memory: int | None
    ) -> tuple[Plan, Tensor]:
        """The plan, and the image where windows are best cut from: on the device if it fits there."""
        if self.device.type == "cpu":
            window_bytes = 0 if max_memory is None else self._measure_window(image)
            free = available_bytes()  # first, since it may lower what is taken
            limit = max_memory if max_memory is not None else resident_bytes() + free
            used = resident_bytes() + result_bytes + beside_bytes
            batch = self.section.batch_size or 1
            num_passes = math.ceil(work.windows.num * self._num_copies / batch)
            lanes = min(_MOST_LANES, torch.get_num_threads(), num_passes)
            return make_plan(work, batch, lanes, Memory(limit, used, window_bytes)), image
        window_bytes = self._measure_window(image)
        used = torch.cuda.memory_allocated(self.device) + beside_bytes
        free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device) - used
        limit = min(used + free, max_memory or used + free)
        batch = self.section.batch_size or max(1, min(_LARGEST_BATCH, free // (2 * window_bytes)))
        with suppress(ResourceError):
            plan = make_plan(work, batch, 1, Memory(limit, used + image.nbytes, window_bytes))
            return plan, image.to(self.device)
        return make_plan(work, batch, 1, Memory(limit, used, window_bytes)), image

    def _measure_window(self, image: Tensor) -> int:
        """Bytes of a forward pass of one window through one network, measured once."""
        size = (1, image.shape[0], *self.window_size)
        if size not in self._window_bytes:
            window = torch.zeros(size, device=self.device)
            self._window_bytes[size] = window.nbytes + measure_peak(
                lambda: self._forward(self.networks[0], window), self.device
            )
        return self._window_bytes[size]

    def _forward(self, network: Network, windows: Tensor) -> Tensor:
        with autocast(self.device, self._dtype):
            return network(windows)
