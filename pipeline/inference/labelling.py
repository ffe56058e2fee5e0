"""A label map on the patient's grid, from a network and an image on the network's grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import InferenceSection
from pipeline.inference.budget import Plan
from pipeline.inference.engine import Engine
from pipeline.inference.ensemble import build_ensemble
from pipeline.inference.window_runner import Network
from pipeline.labels import LabelContract
from pipeline.networks import Segmenter
from pipeline.volume import Grid
from transforms.laterality import Laterality
from transforms.postprocessing import LabelMapBuilder, ProbabilitySink, keep_largest_component
from transforms.preprocessing import Prepared
from transforms.resampling import CHUNK_VOXELS

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
        section: Overlap, blending, batches and post-processing.
        window_size: Voxels per axis; with two axes, slices along the last array axis are predicted alone.
        device: Where to compute.
        mixed_precision: Whether the networks may compute in 16 bits on a GPU. Scores are summed in 32.
        flipped_axes: Axes of a window along which copies are mirrored, all of which are averaged.
        laterality: Output channels that change places in a copy that is mirrored from left to right.
        shares_image: Whether all networks see the same channels of the image; else each its own part of them.
        compiles: Whether the networks are compiled at their first call; see `rehearse`.
        before_pass: Called before each forward pass, by several threads; what it raises ends the prediction.
    """

    def __init__(
        self,
        networks: Sequence[Segmenter],
        contract: LabelContract,
        section: InferenceSection,
        window_size: Sequence[int],
        device: torch.device,
        *,
        mixed_precision: bool,
        flipped_axes: Sequence[int] = (),
        laterality: Laterality | None = None,
        shares_image: bool = True,
        compiles: bool = False,
        before_pass: Callable[[], None] | None = None,
    ) -> None:
        if laterality is not None and laterality.axis not in flipped_axes:
            laterality = None
        ensemble = build_ensemble(
            networks,
            contract,
            shares_image=shares_image,
            keeps_logits=laterality is not None,
            compiles=compiles,
        )
        self.contract = contract
        self.section = section
        self._decision, self._num_scores = ensemble.decision, ensemble.num_scores
        applied = ensemble.networks
        if before_pass is not None:
            applied = tuple(_preceded(before_pass, network) for network in applied)
        self._engine = Engine(
            applied,
            section,
            window_size,
            device,
            mixed_precision=mixed_precision,
            flipped_axes=flipped_axes,
            laterality=laterality,
            joins=ensemble.joins,
        )

    def rehearse(self, num_channels: int) -> None:
        """Predicts a few windows, so that what is compiled at its first call is compiled, in lanes too."""
        height, width, depth = (*self._engine.window_size, 1)[:3]
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
        height, width, depth = prepared.image.shape[1:]
        builder = LabelMapBuilder(
            self._decision, (height, width, depth), prepared.affine, grid.shape, grid.affine, sink
        )
        self._check_host(builder.num_bytes, max_memory)
        swept = self._engine.sweep(
            prepared.image,
            builder,
            self._num_scores,
            normalises=builder.is_resampling or self._decision.weight is not None or sink is not None,
            beside_bytes=0 if sink is None else _probability_bytes(len(self._decision.values), grid),
            max_memory=max_memory,
            on_plan=on_plan,
        )
        array = builder.label_map
        for name in self.section.largest_component:
            array = keep_largest_component(array, self.contract.structures[name])
        return LabelMap(array, swept.plan, swept.num_skipped)

    def _check_host(self, label_bytes: int, max_memory: int | None) -> None:
        """Refuses a label map, or the search for its largest components, that the host cannot hold."""
        if self.section.largest_component:
            searched = label_bytes + _COMPONENT_BYTES * label_bytes
            advice = ", or train with an empty inference.largest_component"
            self._engine.check_host(searched, "keeping largest components", max_memory, advice)
        elif self._engine.device.type != "cpu":  # on a CPU the plan reckons with the label map
            self._engine.check_host(label_bytes, "the label map", max_memory)


def _probability_bytes(num_logits: int, grid: Grid) -> int:
    """What the logits and probabilities of a chunk of voxels take."""
    i, j, k = grid.shape
    return 3 * 4 * num_logits * max(CHUNK_VOXELS, i * j, j * k, i * k)


def _preceded(before: Callable[[], None], network: Network) -> Network:
    def call(windows: Tensor) -> Tensor:
        before()
        return network(windows)

    return call
