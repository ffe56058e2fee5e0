"""Smooth random fields, and deformations that cannot fold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float32]

_KNOT_SPACING = 24.0  # voxels between control points of the deformation
# Cubic B-spline displacements below 1/2.48 of the knot spacing cannot fold (Choi & Lee, Injectivity
# conditions of 2D and 3D uniform cubic B-spline functions, Graphical Models 62, 2000); a quarter looks
# natural.
_LARGEST_DISPLACEMENT = 0.25


def draw_coordinates(generator: np.random.Generator, shape: Sequence[int]) -> Array:
    """Draws where in the template each voxel of a patient comes from; the map never folds.

    Args:
        generator: Determines the turn, the scale, the shift and the deformation.
        shape: Voxels per axis, of the template and of the patient.

    Returns:
        Voxel coordinates `(3, I, J, K)`.
    """
    centre = (np.array(shape) - 1) / 2
    axes = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    num_knots = [round((n - 1) / _KNOT_SPACING) + 3 for n in shape]
    moved = []
    for axis, length in enumerate(shape):
        limit = _LARGEST_DISPLACEMENT * (length - 1) / (num_knots[axis] - 3)
        knots = generator.uniform(-limit, limit, num_knots)
        moved.append(smooth_field(knots, shape) + axes[axis] - np.float32(centre[axis]))
    matrix = rotation(np.deg2rad(generator.uniform(-8, 8, 3))) * generator.uniform(0.94, 1.06, 3)
    offset = (centre + generator.uniform(-4, 4, 3)).astype(np.float32)
    coordinates = np.tensordot(matrix.astype(np.float32), np.stack(moved), axes=1)
    return coordinates + offset[:, None, None, None]


def resample(maps: torch.Tensor, coordinates: Array) -> Array:
    """Trilinear values `(C, I, J, K)` of the maps `(1, C, I, J, K)`, continued beyond their borders."""
    sizes = torch.tensor(maps.shape[2:], dtype=torch.float32)
    grid = torch.from_numpy(coordinates).movedim(0, -1) * (2 / (sizes - 1)) - 1
    sample = torch.nn.functional.grid_sample
    values = sample(maps, grid.flip(-1)[None], padding_mode="border", align_corners=True)
    return values[0].numpy()


def rotation(angles: Iterable[float]) -> NDArray[np.float64]:
    """3x3 rotation about the first, then the second, then the third axis, in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.roll([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], axis, axis=(0, 1))
        matrix = turn @ matrix
    return matrix


def smooth_field(knots: NDArray[np.float64], shape: Sequence[int]) -> Array:
    """The uniform cubic B-spline over a coarse grid of knots, one knot beyond either end of each axis."""
    field = knots.astype(np.float32)
    for length, num_knots in zip(shape, knots.shape, strict=True):
        # Contracts the first axis and appends the fine one: after three turns the order is as it was.
        field = np.tensordot(field, _spline_basis(length, num_knots), axes=(0, 1))
    return field


def _spline_basis(length: int, num_knots: int) -> Array:
    """Weights `(length, num_knots)` of the knots at each voxel; every row sums to 1."""
    position = np.linspace(0, num_knots - 3, length)[:, None] + 1 - np.arange(num_knots)
    distance = np.abs(position)
    near, far = 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)
