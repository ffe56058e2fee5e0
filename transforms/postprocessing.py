"""From the network's scores to label values on the patient's own grid.

Scores are logits, never activated: for classes the largest wins, for regions a positive logit means a
probability above one half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from transforms.resampling import BlockResampler, Shape, Slices

_CLASSES_AT_ONCE = 8

ProbabilitySink = Callable[[Slices, Tensor], None]
"""Takes a place on the patient's grid and its `(K, …)` probabilities."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How the scores of a voxel become its label.

    Attributes:
        values: Label value written for each class or region.
        is_regions: Whether they are independent regions, outer to inner, instead of classes.
        weight: `(K, C)` of a linear layer that makes `K` logits of `C` scores; None if scores are logits. It
            commutes with blending and with linear resampling, so it may come last, once per voxel.
        bias: `(K,)` of that layer.
    """

    values: tuple[int, ...]
    is_regions: bool = False
    weight: Tensor | None = None
    bias: Tensor | None = None


class LabelMapBuilder:
    """A label map on the patient's grid, from scores that arrive block by block.

    The result equals resampling the scores of the whole volume linearly to the patient's grid and deciding
    every voxel there, however the volume was cut.

    Args:
        decision: How scores become labels.
        source_shape: `(h, w, d)` of the network's grid.
        affine: 4x4 voxel → world of the network's grid.
        shape: `(I, J, K)` of the patient's grid.
        target_affine: 4x4 voxel → world of the patient's grid; its axes are those of `affine` up to order,
            direction and spacing.
        sink: Is given the probabilities of every voxel, some of them twice; scores must then be normalised.

    Attributes:
        label_map: `(I, J, K)` label values in the smallest unsigned integer type, in Fortran order, the
            order in which NIfTI stores them; background until decided.
        overlap: Per axis of the network's grid, how many planes a block must share with the one before.
    """

    def __init__(
        self,
        decision: Decision,
        source_shape: Shape,
        affine: NDArray[np.float64],
        shape: Shape,
        target_affine: NDArray[np.float64],
        sink: ProbabilitySink | None = None,
    ) -> None:
        self._decision = decision
        self._sink = sink
        self._resampler = BlockResampler(source_shape, affine, shape, target_affine)
        self.overlap = self._resampler.overlap
        self.label_map = np.zeros(shape, dtype=np.min_scalar_type(max(decision.values)), order="F")

    @property
    def num_bytes(self) -> int:
        """What the label map takes."""
        return self.label_map.nbytes

    @property
    def is_resampling(self) -> bool:
        """Whether a voxel's label depends on the scores of its neighbours."""
        return self._resampler.is_resampling

    def add(self, scores: Tensor, origin: Shape) -> None:
        """Decides every voxel whose scores depend on nothing outside of a block.

        Args:
            scores: `(C, h, w, d)` float32 of a block of the network's grid, normalised if resampled.
            origin: The block's first voxel.

        Raises:
            FloatingPointError: If scores are not numbers.
        """
        for chunk, resampled in self._resampler.resample(scores.unbind(), origin):
            self.label_map[chunk] = self._decide(chunk, resampled).cpu().numpy()

    def _decide(self, chunk: Slices, logits: Iterator[Tensor]) -> Tensor:
        decision = self._decision
        if decision.weight is not None and decision.bias is not None:
            logits = _apply_linearly(torch.stack(tuple(logits)), decision.weight, decision.bias)
        if self._sink is not None:
            together = torch.stack(tuple(logits))
            self._sink(chunk, together.sigmoid() if decision.is_regions else together.softmax(0))
            logits = iter(together)
        return _decide(logits, decision)


def label_map_on_grid(
    scores: Tensor,
    affine: NDArray[np.float64],
    shape: Shape,
    target_affine: NDArray[np.float64],
    decision: Decision,
) -> NDArray[np.unsignedinteger]:
    """Resamples the scores of a whole volume linearly to a grid and decides every voxel there.

    Args:
        scores: `(C, h, w, d)` on the network's grid.
        affine: 4x4 voxel → world of `scores`.
        shape: `(I, J, K)` of the target grid.
        target_affine: Its 4x4 voxel → world.
        decision: How scores become labels.

    Returns:
        `(I, J, K)` label values; see `LabelMapBuilder.label_map`.
    """
    height, width, depth = scores.shape[1:]
    builder = LabelMapBuilder(decision, (height, width, depth), affine, shape, target_affine)
    builder.add(scores, (0, 0, 0))
    return builder.label_map


def keep_largest_component(
    label_map: NDArray[np.unsignedinteger], values: Sequence[int]
) -> NDArray[np.unsignedinteger]:
    """Sets all but the largest 26-connected component of the union of `values` to background."""
    mask = np.isin(label_map, values)
    if not mask.any():
        return label_map
    box = ndimage.find_objects(mask.view(np.uint8))[0]
    components, num = ndimage.label(mask[box], structure=np.ones((3, 3, 3)))
    if num == 1:
        return label_map
    sizes = sum(np.bincount(plane.ravel(), minlength=num + 1) for plane in components)
    largest = 1 + int(np.asarray(sizes)[1:].argmax())
    result = label_map.copy(order="K")
    result[box][mask[box] & (components != largest)] = 0
    return result


def _apply_linearly(scores: Tensor, weight: Tensor, bias: Tensor) -> Iterator[Tensor]:
    """Logits `(…)` of one class after the other, of `(C, …)` scores."""
    flat = scores.flatten(1)
    for first in range(0, len(weight), _CLASSES_AT_ONCE):
        some = slice(first, first + _CLASSES_AT_ONCE)
        for logits in torch.addmm(bias[some, None], weight[some], flat):
            yield logits.view(scores.shape[1:])


def _decide(logits: Iterator[Tensor], decision: Decision) -> Tensor:
    """Label values from one logit volume after the other, against a running winner.

    Numbers of channels rise, so that a winner's number is the largest so far: a product and a maximum of
    bytes set it in a tenth of the time that filling under a mask takes.
    """
    first = next(logits)
    # For classes the largest logit so far; for regions their sum, which is only asked whether it is a number.
    running = first.clone(memory_format=torch.contiguous_format)
    kind = torch.uint8 if len(decision.values) <= 255 else torch.int32
    wins = torch.empty_like(running, dtype=torch.bool)
    number = (first > 0).to(kind) if decision.is_regions else torch.zeros_like(running, dtype=kind)
    values = (0, *decision.values) if decision.is_regions else decision.values
    for channel, logit in enumerate(logits, start=2 if decision.is_regions else 1):
        if decision.is_regions:
            torch.gt(logit, 0, out=wins)
            running += logit
        else:
            torch.gt(logit, running, out=wins)
            torch.maximum(running, logit, out=running)
        torch.maximum(number, wins.to(kind).mul_(channel), out=number)
    # A NaN would silently become background: neither larger nor positive. Sums and maxima pass it on.
    if bool(running.amax().isnan()):
        raise FloatingPointError("the network's scores are not numbers")
    if values == tuple(range(len(values))):
        return number
    table = torch.tensor(values, dtype=torch.int32, device=number.device)
    return table[number.int()]
