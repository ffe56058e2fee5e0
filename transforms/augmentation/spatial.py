"""Where the voxels of a patch come from, and fetching them: one resampling for all that moves.

Positions are sums of products of one function per axis: an affine map is one, a tensor-product spline is one,
and so are both after each other. Three small matrix products then give all positions, and mirroring only
turns an axis' functions round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transforms.augmentation.drawing import Draw, count_points

Array = NDArray[np.float64]

# On a CPU, voxels whose positions, corners and weights fit into a core's cache together.
_CHUNK_VOXELS = 2**16


@dataclass(frozen=True, slots=True)
class Positions:
    """Where in a source every voxel of a patch is taken from.

    Voxel `(i, j, k)` lies at `Σ coefficients[:, a, b, c] · bases[0][i, a] · bases[1][j, b] · bases[2][k, c]`;
    with two axes likewise.

    Attributes:
        coefficients: `(d, A, B, C)` or `(d, A, B)`, in voxels of the source along its `d` axes.
        bases: For each axis of the patch `(voxels, functions)`.
    """

    coefficients: Tensor
    bases: tuple[Tensor, ...]

    def to(self, device: torch.device) -> Positions:
        """The same on `device`."""
        return Positions(self.coefficients.to(device), tuple(basis.to(device) for basis in self.bases))

    def along(self, first: int, last: int) -> Tensor:
        """`(d, last - first, …)` positions of the voxels from `first` to `last` along the first axis."""
        rows = (self.bases[0][first:last], *self.bases[1:])
        positions = self.coefficients
        for basis in rows:
            positions = torch.tensordot(positions, basis, dims=([1], [1]))
        return positions


def build_matrix(angles: Sequence[float], zoom: float, spacing: Sequence[float]) -> Array:
    """The matrix from an offset in the patch to one in the source, in voxels.

    Args:
        angles: Radians in the planes of the axes (0, 1), (0, 2), (1, 2), turned in this order; or in (0, 1).
        zoom: Factor by which everything grows.
        spacing: Millimetres per voxel, so that it is a rotation in the patient.
    """
    dims = len(spacing)
    matrix = np.eye(dims)
    planes = [(0, 1), (0, 2), (1, 2)] if dims == 3 else [(0, 1)]
    for (a, b), angle in zip(planes, angles, strict=True):
        rotation = np.eye(dims)
        rotation[a, a] = rotation[b, b] = math.cos(angle)
        rotation[a, b], rotation[b, a] = -math.sin(angle), math.sin(angle)
        matrix = rotation @ matrix
    millimetres = np.array(spacing)
    return np.asarray(matrix * millimetres[None, :] / millimetres[:, None] / zoom)


def place(
    drawn: Draw,
    mirrored: Sequence[int],
    sides: Sequence[int],
    source_sides: Sequence[int],
    spacing: Sequence[float],
) -> Positions:
    """The positions that a draw asks for: first bent, then turned and scaled about the common centre.

    Args:
        drawn: Angles, zoom and displacement.
        mirrored: Which of the axes are flipped after all that.
        sides: Voxels of the patch along each axis.
        source_sides: Voxels of the source.
        spacing: Millimetres per voxel of both.
    """
    dims = len(sides)
    angles = drawn.angles or (0.0,) * (3 if dims == 3 else 1)
    matrix = build_matrix(angles, drawn.zoom or 1.0, spacing)
    offsets = [np.arange(n) - (n - 1) / 2 for n in sides]
    bases = [np.stack([np.ones_like(offset), offset], axis=1) for offset in offsets]
    coefficients = _affine_coefficients(matrix, (np.array(source_sides) - 1) / 2)
    if drawn.displacement is not None:
        splines = [_spline_basis(n, drawn.distance) for n in sides]
        coefficients = _join(coefficients, np.tensordot(matrix, drawn.displacement, axes=1))
        bases = [np.concatenate(both, axis=1) for both in zip(bases, splines, strict=True)]
    turned = [basis[::-1] if axis in mirrored else basis for axis, basis in enumerate(bases)]
    return Positions(_to_tensor(coefficients), tuple(map(_to_tensor, turned)))


def resample(
    image: Tensor, label: Tensor, positions: Positions, still: int | None, into: tuple[Tensor, Tensor]
) -> None:
    """Fills a patch from a source: the image linearly, the label from the nearest voxel.

    What lies beyond the source is taken from its edge.

    Args:
        image: `(C, H, W, D)` or `(C, H, W)` float32.
        label: The same without channels.
        positions: Of the patch's voxels, along all axes but `still`.
        still: An axis that nothing moves along, the patch being as long as the source.
        into: Image and label of the patch.
    """
    sources = [_fold(channel, still) for channel in (*image, label)]
    targets = [_unfold(channel, still) for channel in (*into[0], into[1])]
    sizes = [n for axis, n in enumerate(label.shape) if axis != still]
    # An axis of a single voxel has no next one.
    strides = [math.prod(sizes[axis + 1 :]) if n > 1 else 0 for axis, n in enumerate(sizes)]
    # Only a processor's cache asks for pieces.
    largest = _CHUNK_VOXELS if image.device.type == "cpu" else into[1].numel()
    step = max(1, largest * targets[0].shape[0] // into[1].numel())
    for first in range(0, targets[0].shape[0], step):
        parts = [target[first : first + step] for target in targets]
        found = positions.along(first, first + len(parts[0])).flatten(1)
        lower, fractions = _split(found, sizes, strides)
        weights = [f if still is None else f[:, None] for f in fractions]
        for source, part in zip(sources[:-1], parts[:-1], strict=True):
            part.copy_(_interpolate(source, lower, weights, strides).view(part.shape))
        for fraction, stride in zip(fractions, strides, strict=True):
            lower.add_(fraction >= 0.5, alpha=stride)
        parts[-1].copy_(sources[-1].index_select(0, lower).view(parts[-1].shape))


def _affine_coefficients(matrix: Array, centre: Array) -> Array:
    """Of the functions 1 and offset along each axis: `(d, 2, 2, 2)` or `(d, 2, 2)`."""
    dims = len(matrix)
    by_function = np.zeros((*(2 for _ in range(dims)), dims))
    by_function[(0,) * dims] = centre
    for axis in range(dims):
        by_function[tuple(int(other == axis) for other in range(dims))] = matrix[:, axis]
    return np.moveaxis(by_function, -1, 0)


def _spline_basis(side: int, distance: float) -> Array:
    """`(side, points)` values of the cubic B-splines of control points; every row sums to 1."""
    points = np.arange(count_points(side, distance)) - 1
    away = np.abs(np.arange(side)[:, None] / (distance * side) - points)
    return np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.maximum(2 - away, 0) ** 3 / 6)


def _join(affine: Array, bent: Array) -> Array:
    """Coefficients for the functions of both, one after the other along every axis."""
    joined = np.zeros((len(affine), *(2 + n for n in bent.shape[1:])))
    joined[:, *(slice(2) for _ in affine)] = affine
    joined[:, *(slice(2, None) for _ in affine)] = bent
    return joined


def _to_tensor(array: Array) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))


def _fold(channel: Tensor, still: int | None) -> Tensor:
    """`(positions,)`, or `(positions, voxels along the still axis)`."""
    return channel.flatten() if still is None else channel.movedim(still, -1).flatten(0, 1)


def _unfold(channel: Tensor, still: int | None) -> Tensor:
    return channel if still is None else channel.movedim(still, -1)


def _split(positions: Tensor, sizes: Sequence[int], strides: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Index of the voxel below each position, and how far beyond it the position lies along each axis."""
    lower = torch.zeros(positions.shape[1], dtype=torch.int32, device=positions.device)
    fractions = []
    for position, size, stride in zip(positions, sizes, strides, strict=True):
        position.clamp_(0, size - 1)
        below = position.floor().clamp_(max=max(size - 2, 0))
        fractions.append(position.sub_(below))
        lower.add_(below.int(), alpha=stride)
    return lower, fractions


def _interpolate(source: Tensor, lower: Tensor, weights: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
    """Linear interpolation between the corners above `lower`, one axis after the other."""

    def between(axis: int, offset: int) -> Tensor:
        if axis == len(strides):
            return source[offset:].index_select(0, lower)
        low = between(axis + 1, offset)
        return low.lerp_(between(axis + 1, offset + strides[axis]), weights[axis])

    return between(0, 0)
