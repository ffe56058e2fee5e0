"""A label map on the patient's grid, from a network and an image on the network's grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import InferenceSection
from pipeline.errors import Fault, IntegrityError, ResourceError
from pipeline.inference.budget import Memory, Plan, Work, make_plan
from pipeline.inference.ensemble import build_ensemble
from pipeline.inference.sliding_window import sweep
from pipeline.inference.window_runner import Network, WindowRunner
from pipeline.inference.windows import Box, lay_windows, weigh_voxels
from pipeline.labels import LabelContract
from pipeline.memory import available_bytes, format_size, measure_peak, resident_bytes
from pipeline.networks import AttentionUNet
from pipeline.volume import Grid
from transforms.laterality import Laterality
from transforms.postprocessing import (
    CHUNK_VOXELS,
    LabelMapBuilder,
    ProbabilitySink,
    keep_largest_component,
)
from transforms.preprocessing import Prepared

_LARGEST_BATCH = 32
# Each takes the memory of a window's forward pass; two were measured.
_MOST_LANES = 4
_COMPONENT_BYTES = 6  # a voxel while connected components are searched: a mask and their numbers


@dataclass(frozen=True, slots=True)
class LabelMap:
    """A label map and how it came about.

    Attributes:
        array: `(I, J, K)` label values, in the stored axis order of the input.
        plan: How the volume was cut.
        num_skipped: Windows that needed no forward pass, since they held nothing.
    """

    array: NDArray[np.unsignedinteger]
    plan: Plan
    num_skipped: int


class Labeller:
    """Slides networks over images and decides every voxel of the patient's grid.

    Args:
        networks: Trained networks of one shape on `device`; the mean of their logits decides.
        contract: Names and values of the labels.
        section: Overlap, blending, flips, batches and post-processing.
        window_size: Voxels per axis; with two axes, slices along the last array axis are predicted alone.
        device: Where to compute.
        mixed_precision: Whether the networks may compute in 16 bits on a GPU. Scores are summed in 32.
        laterality: Output channels that change places in a copy that is mirrored from left to right.
        shares_image: Whether all networks see the same channels of the image; else each its own part of them.
        compiles: Whether the networks are compiled at their first call; see `rehearse`.
    """

    def __init__(
        self,
        networks: Sequence[AttentionUNet],
        contract: LabelContract,
        section: InferenceSection,
        window_size: Sequence[int],
        device: torch.device,
        *,
        mixed_precision: bool,
        laterality: Laterality | None = None,
        shares_image: bool = True,
        compiles: bool = False,
    ) -> None:
        self._laterality = laterality if section.flips else None
        self._ensemble = build_ensemble(
            networks,
            contract,
            shares_image=shares_image,
            keeps_logits=self._laterality is not None,
            compiles=compiles,
        )
        self.contract = contract
        self.section = section
        self.window_size = tuple(window_size)
        self.device = device
        self._autocast_type = autocast_type(device) if mixed_precision else None
        self._weights = weigh_voxels(self.window_size, section.blending, device)
        num_mirrored = 2 ** len(self.window_size) if section.flips else 1
        self._num_copies = num_mirrored * len(networks)
        self._window_bytes: dict[tuple[int, ...], int] = {}

    def rehearse(self, num_channels: int) -> None:
        """Predicts a few windows, so that what is compiled at its first call is compiled, in lanes too."""
        height, width, depth = (*self.window_size, 1)[:3]
        shape = 2 * height, width, depth
        ramp = torch.linspace(0, 1, num_channels * math.prod(shape))  # no window of it is empty
        self.label(Prepared(ramp.reshape(num_channels, *shape), np.eye(4)), Grid(shape, np.eye(4)))

    def label(
        self,
        prepared: Prepared,
        grid: Grid,
        max_memory: int | None = None,
        on_plan: Callable[[Plan], None] = lambda plan: None,
        sink: ProbabilitySink | None = None,
    ) -> LabelMap:
        """Predicts one image.

        Args:
            prepared: The image on the network's grid.
            grid: The patient's grid, that of the label map.
            max_memory: Bytes that this process, and on a GPU its tensors, may take at their peak. If None,
                what is free.
            on_plan: Is told the plan before the first window.
            sink: Is given the probabilities of every voxel as they come, some of them twice.

        Raises:
            ResourceError: If no plan keeps within that memory, or it did not suffice after all.
            IntegrityError: If the network's scores are not numbers.
        """
        shape = _shape_of(prepared.image)
        decision = self._ensemble.decision
        builder = LabelMapBuilder(decision, shape, prepared.affine, grid.shape, grid.affine, sink)
        windows = lay_windows(shape, self.window_size, self.section.overlap)
        normalises = builder.is_resampling or decision.weight is not None or sink is not None
        work = Work(windows, self._ensemble.num_scores, builder.overlap, normalises, self._num_copies)
        try:
            with torch.inference_mode():
                label_bytes = builder.label_map.nbytes
                beside_bytes = 0 if sink is None else _probability_bytes(len(decision.values), grid)
                if self.section.skip_empty:
                    beside_bytes += work.window_bytes  # the scores of an empty window are kept
                plan, image = self._plan(work, prepared.image, label_bytes, beside_bytes, max_memory)
                on_plan(plan)
                runner = self._build_runner(plan)
                for box in plan.boxes:
                    self._label_box(runner, image, work, builder, box)
        except (torch.OutOfMemoryError, MemoryError) as error:
            message = "not even one window fits into the memory that is free; end other programs"
            raise ResourceError(Fault("prediction", "out-of-memory", message)) from error
        except FloatingPointError as error:
            message = f"{error}; the model is damaged or its precision does not suffice, train it again"
            raise IntegrityError(Fault("prediction", "not-a-number", message)) from error
        array = builder.label_map
        for name in self.section.largest_component:
            array = keep_largest_component(array, self.contract.structures[name])
        return LabelMap(array, plan, runner.num_skipped)

    def _label_box(
        self, runner: WindowRunner, image: Tensor, work: Work, builder: LabelMapBuilder, box: Box
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
        )
        for block in blocks:
            builder.add(block.scores, block.origin)

    def _build_runner(self, plan: Plan) -> WindowRunner:
        return WindowRunner(
            [partial(self._forward, network) for network in self._ensemble.networks],
            self.window_size,
            joins=self._ensemble.joins,
            flips=self.section.flips,
            laterality=self._laterality,
            batch_size=plan.batch_size,
            num_lanes=plan.num_lanes,
            skips_empty=self.section.skip_empty,
            device=self.device,
        )

    def _plan(
        self, work: Work, image: Tensor, label_bytes: int, beside_bytes: int, max_memory: int | None
    ) -> tuple[Plan, Tensor]:
        """The plan, and the image where windows are best cut from: on the device if it fits there."""
        if self.device.type == "cpu":
            window_bytes = 0 if max_memory is None else self._measure_window(image)
            free = available_bytes()  # first, since it may lower what is taken
            limit = max_memory if max_memory is not None else resident_bytes() + free
            used = resident_bytes() + label_bytes + beside_bytes
            if self.section.largest_component:
                self._check_host(label_bytes, limit)
            batch = self.section.batch_size or 1
            num_passes = math.ceil(work.windows.num * self._num_copies / batch)
            lanes = min(_MOST_LANES, torch.get_num_threads(), num_passes)
            return make_plan(work, batch, lanes, Memory(limit, used, window_bytes)), image
        if max_memory is not None:
            self._check_host(label_bytes, max_memory)
        window_bytes = self._measure_window(image)
        used = torch.cuda.memory_allocated(self.device) + beside_bytes
        free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device) - used
        limit = min(used + free, max_memory or used + free)
        batch = self.section.batch_size or max(1, min(_LARGEST_BATCH, free // (2 * window_bytes)))
        with suppress(ResourceError):
            plan = make_plan(work, batch, 1, Memory(limit, used + image.nbytes, window_bytes))
            return plan, image.to(self.device)
        return make_plan(work, batch, 1, Memory(limit, used, window_bytes)), image

    def _check_host(self, label_bytes: int, limit: int) -> None:
        """Refuses a label map, or the search for its largest components, that the host cannot hold."""
        searched = _COMPONENT_BYTES * label_bytes if self.section.largest_component else 0
        needed = resident_bytes() + label_bytes + searched
        if needed > limit:
            what = "keeping largest components" if searched else "the label map"
            message = f"{what} takes {format_size(needed)}, {format_size(limit)} are allowed; allow more"
            if searched:
                message += ", or train with an empty inference.largest_component"
            raise ResourceError(Fault("max-memory", "budget-too-small", message))

    def _measure_window(self, image: Tensor) -> int:
        """Bytes of a forward pass of one window through one network, measured once."""
        size = (1, image.shape[0], *self.window_size)
        if size not in self._window_bytes:
            window = torch.zeros(size, device=self.device)
            self._window_bytes[size] = window.nbytes + measure_peak(
                lambda: self._forward(self._ensemble.networks[0], window), self.device
            )
        return self._window_bytes[size]

    def _forward(self, network: Network, windows: Tensor) -> Tensor:
        kind = self._autocast_type
        with torch.autocast(self.device.type, dtype=kind, enabled=kind is not None):
            return network(windows)


def autocast_type(device: torch.device) -> torch.dtype | None:
    """bfloat16 or float16 on a GPU; bfloat16 is slower than float32 on the CPUs that were measured."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _probability_bytes(num_logits: int, grid: Grid) -> int:
    """What the logits and probabilities of a chunk of voxels take."""
    i, j, k = grid.shape
    return 3 * 4 * num_logits * max(CHUNK_VOXELS, i * j, j * k, i * k)


def _shape_of(image: Tensor) -> tuple[int, int, int]:
    height, width, depth = image.shape[1:]
    return height, width, depth
