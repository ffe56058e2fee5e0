"""Where windows lie in a volume, and how much each of their voxels counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor

Axes = tuple[int, int, int]
Range = tuple[int, int]
Box = tuple[Range, Range, Range]
"""First voxel and the one behind the last, per axis."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Positions of equal windows that cover a volume.

    Attributes:
        shape: `(H, W, D)` of the volume.
        size: Voxels of a window per axis; a network for slices has 1 along the last.
        starts: First voxels per axis, rising. One is negative where the volume is smaller than a window,
            which then reaches beyond it on both sides.
    """

    shape: Axes
    size: Axes
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    @property
    def num(self) -> int:
        """How many windows there are."""
        return math.prod(len(starts) for starts in self.starts)

    def along(self, axis: int, box: Box) -> Iterator[Axes]:
        """Starts of the windows that touch `box`, layer by layer along `axis`."""
        touching = [
            [start for start in starts if start < stop and start + size > first]
            for starts, size, (first, stop) in zip(self.starts, self.size, box, strict=True)
        ]
        order = (axis, *(other for other in range(3) if other != axis))
        for start in product(*(touching[k] for k in order)):
            at = dict(zip(order, start, strict=True))
            yield at[0], at[1], at[2]


def lay_windows(
    shape: Axes,
    window_size: Sequence[int],
    overlap: float,
    placement: Literal["even", "stepped"] = "even",
) -> Windows:
    """Covers a volume with windows, as few as the overlap allows.

    Args:
        shape: `(H, W, D)` of the volume.
        window_size: Voxels per axis; with two, every slice along the last axis has windows of its own.
        overlap: Share of a window that its neighbour covers again, at least.
        placement: Spread evenly, or step by step as MONAI lays them.
    """
    lay = space_evenly if placement == "even" else space_stepwise
    if len(window_size) == 2:
        height, width = window_size
        in_plane = [lay(n, w, overlap) for n, w in zip(shape, (height, width), strict=False)]
        return Windows(shape, (height, width, 1), (in_plane[0], in_plane[1], tuple(range(shape[2]))))
    height, width, depth = window_size
    first, second, third = (lay(n, w, overlap) for n, w in zip(shape, window_size, strict=True))
    return Windows(shape, (height, width, depth), (first, second, third))


def space_evenly(size: int, window: int, overlap: float) -> tuple[int, ...]:
    """First voxels of windows along one axis: nnU-Net's rule, with windows wider than the volume centred."""
    if size <= window:
        return (-((window - size) // 2),)
    step = max(1.0, window * (1 - overlap))
    num_steps = math.ceil((size - window) / step)
    return tuple(round(number * ((size - window) / num_steps)) for number in range(num_steps + 1))


def space_stepwise(size: int, window: int, overlap: float) -> tuple[int, ...]:
    """First voxels of windows along one axis by MONAI's rule: equal steps, the last moved back to fit."""
    if size <= window:
        return (-((window - size) // 2),)
    step = max(1, int(window * (1 - overlap)))
    return (*range(0, size - window, step), size - window)


def weigh_voxels(
    window_size: Sequence[int], blending: Literal["gaussian", "constant"], device: torch.device
) -> Tensor:
    """How much each voxel of a window counts, `(H, W, D)` float32: MONAI's importance map."""
    weights = compute_importance_map(
        tuple(window_size), mode=blending, sigma_scale=0.125, device=device, dtype=torch.float32
    )
    assert isinstance(weights, Tensor)
    return weights[..., None] if len(window_size) == 2 else weights
