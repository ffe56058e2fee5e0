"""How large a patch is, and how the network shrinks it from level to level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SHORTEST_EDGE = 4
"""Voxels that an axis keeps on the coarsest grid if it is halved at all (as in nnU-Net)."""

_ALIKE = 2.0  # spacings within this factor count as equal


@dataclass(frozen=True, slots=True)
class Topology:
    """Patch and levels that fit each other.

    Attributes:
        patch_size: Voxels per axis, multiples of the strides' product.
        strides: Per level and axis, the first all 1.
        kernels: Per level and axis.
    """

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Voxels of the patch per voxel of the coarsest grid, per axis."""
        return tuple(math.prod(along) for along in zip(*self.strides, strict=True))

    @property
    def num_voxels(self) -> int:
        """Of the patch."""
        return math.prod(self.patch_size)


def choose_topology(
    content: Sequence[float], spacing: Sequence[float], max_voxels: float, max_levels: int
) -> Topology:
    """The largest patch of equal millimetres that fits into the content and the allowance, and its levels.

    Args:
        content: Voxels of a typical image's content, per axis.
        spacing: Millimetres per voxel.
        max_voxels: Allowance. It is exceeded only where the smallest patch is larger: `2 * SHORTEST_EDGE`
            along every axis that is not coarse, however small the images are.
        max_levels: Of the network, at least 2.
    """
    coarse = [mm >= _ALIKE * min(spacing) for mm in spacing]
    smallest = [1 if is_coarse else 2 * SHORTEST_EDGE for is_coarse in coarse]
    longest = [max(n, float(least)) for n, least in zip(content, smallest, strict=True)]
    edges = [
        max(edge, float(least))
        for edge, least in zip(_equal_edges(longest, spacing, max_voxels), smallest, strict=True)
    ]
    strides, kernels = _choose_levels(edges, spacing, max_levels)
    total = [math.prod(along) for along in zip(*strides, strict=True)]
    patch = [max(1, round(edge / stride)) * stride for edge, stride in zip(edges, total, strict=True)]
    shortest = [SHORTEST_EDGE * stride if stride > 1 else 1 for stride in total]
    while math.prod(patch) > max_voxels:
        # Take a little off the axis that is longest in the patient, as long as there is something to take.
        loose = [axis for axis in range(len(patch)) if patch[axis] - total[axis] >= shortest[axis]]
        if not loose:
            break
        axis = max(loose, key=lambda a: patch[a] * spacing[a])
        patch[axis] -= total[axis]
    return Topology(tuple(patch), strides, kernels)


def _equal_edges(longest: Sequence[float], spacing: Sequence[float], max_voxels: float) -> list[float]:
    """Edges in voxels, equal in millimetres except where the content is shorter, within the allowance."""
    edges = list(longest)
    free = list(range(len(edges)))
    while free:
        left = max_voxels / math.prod(edges[axis] for axis in range(len(edges)) if axis not in free)
        side = (left * math.prod(spacing[axis] for axis in free)) ** (1 / len(free))
        short = [axis for axis in free if side / spacing[axis] >= longest[axis]]
        if not short:
            for axis in free:
                edges[axis] = side / spacing[axis]
            break
        free = [axis for axis in free if axis not in short]
    return edges


def _choose_levels(
    edges: Sequence[float], spacing: Sequence[float], max_levels: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Strides and kernels of each level.

    An axis is halved while it stays `SHORTEST_EDGE` long and its spacing is within a factor of 2 of the
    finest that can still be halved. Kernels are 1 along a coarse axis until the others have come near it.
    """
    edges, spacing = list(edges), list(spacing)
    axes = range(len(edges))
    strides = [(1,) * len(edges)]
    is_resolved = [mm < _ALIKE * min(spacing) for mm in spacing]
    kernels = [_kernel(is_resolved)]
    while len(strides) < max_levels:
        long = [axis for axis in axes if edges[axis] >= 2 * SHORTEST_EDGE]
        finest = min((spacing[axis] for axis in long), default=0.0)
        halved = [axis for axis in long if spacing[axis] < _ALIKE * finest]
        if not halved:
            break
        for axis in halved:
            edges[axis] /= 2
            spacing[axis] *= 2
        is_resolved = [
            done or mm < _ALIKE * min(spacing) for done, mm in zip(is_resolved, spacing, strict=True)
        ]
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        kernels.append(_kernel(is_resolved))
    return tuple(strides), tuple(kernels)


def _kernel(is_resolved: Sequence[bool]) -> tuple[int, ...]:
    return tuple(3 if done else 1 for done in is_resolved)
