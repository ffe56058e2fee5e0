"""Motion between the lines of an MR acquisition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor

from transforms.augmentation.spatial import build_matrix
from transforms.corruption.contract import (
    draw_from,
    require,
    require_between,
    require_image,
    require_magnitude,
)

_LARGEST_MOVES = 64


@dataclass(frozen=True, slots=True)
class Pose:
    """How the patient lies while some lines of k-space are acquired.

    Attributes:
        lines: First line, and the one behind the last, of the first array axis, from the lowest frequency
            to the highest.
        angles: Radians per plane: of the axes (0, 1), (0, 2) and (1, 2), or of the one plane there is.
        shift: Millimetres along each array axis.
    """

    lines: tuple[int, int]
    angles: tuple[float, ...]
    shift: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Motion:
    """Rigid motion during the acquisition: k-space is put together from moved copies of the image.

    The first array axis is that of the slow phase encoding, whose lines are acquired from the lowest
    frequency to the highest, all other axes at once. The patient lies still but for `moves` sudden moves,
    one at a random line of each of as many equal parts; between them every angle and shift is drawn
    uniformly within its bound. The lines of every stretch come from the Fourier transform of the image
    moved so, those of the stretch with the centre of k-space from the image as it is: they say where the
    patient seems to lie, so that the truth lies there as well (*Global displacement induced by rigid motion
    simulation during MRI acquisition*, arXiv 2204.03522). The result is the magnitude. After Shaw et al.,
    *MRI k-space motion artefact augmentation*, MIDL 2019, whose moves are a random walk.

    Copies are interpolated linearly, which blurs them by a fraction of a voxel; the edge goes on outside.
    Motion within a line, spins that a moved slice has not excited, and coils that stay where they were are
    left out.

    Attributes:
        degrees: Largest rotation in each plane, about the centre of the image.
        millimetres: Largest shift along each axis; with both 0 the image stays as it is, up to rounding.
        moves: How often the patient moves.
    """

    degrees: float
    millimetres: float
    moves: int = 16

    def __post_init__(self) -> None:
        require_between(self.degrees, 0, 180, "The rotation of a motion, in degrees,")
        require(
            0 <= self.millimetres < math.inf,
            f"The shift of a motion has to be 0 mm or more and finite; it is {self.millimetres:g}.",
        )
        require(
            isinstance(self.moves, int) and 1 <= self.moves <= _LARGEST_MOVES,
            f"A patient moves a whole number of times, 1 to {_LARGEST_MOVES}; given is {self.moves}.",
        )

    def __call__(self, image: Tensor, spacing: Sequence[float], seed: int) -> Tensor:
        """See `Corruption`; the image must not be negative."""
        require_image(image, spacing)
        require_magnitude(image, "Motion")
        return acquire(image, spacing, self.draw_poses(image.shape[1], len(spacing), seed))

    def draw_poses(self, num_lines: int, num_axes: int, seed: int) -> list[Pose]:
        """What the patient does, without the stretch that has the centre of k-space."""
        generator = draw_from(seed)
        moments = (torch.arange(self.moves) + torch.rand(self.moves, generator=generator)) / self.moves
        bounds = [0, *(moments * num_lines).long().tolist(), num_lines]
        num_planes = 3 if num_axes == 3 else 1
        drawn = 2 * torch.rand((self.moves + 1, num_planes + num_axes), generator=generator).double() - 1
        angles = (drawn[:, :num_planes] * math.radians(self.degrees)).tolist()
        shifts = (drawn[:, num_planes:] * self.millimetres).tolist()
        centre = num_lines // 2
        return [
            Pose((first, stop), tuple(turned), tuple(shift))
            for first, stop, turned, shift in zip(bounds[:-1], bounds[1:], angles, shifts, strict=True)
            if first < stop and not first <= centre < stop
        ]


def acquire(image: Tensor, spacing: Sequence[float], poses: Sequence[Pose]) -> Tensor:
    """The magnitude image of who lies in each pose while its lines are acquired, and else as in `image`."""
    axes = tuple(range(1, image.ndim))
    spectrum = torch.fft.fftn(image, dim=axes)
    order = torch.fft.fftshift(torch.arange(image.shape[1])).to(image.device)
    for pose in poses:
        lines = order[slice(*pose.lines)]
        spectrum[:, lines] = torch.fft.fftn(move(image, spacing, pose), dim=axes)[:, lines]
    acquired: Tensor = torch.fft.ifftn(spectrum, dim=axes)
    return acquired.abs()


def move(image: Tensor, spacing: Sequence[float], pose: Pose) -> Tensor:
    """Turns what is in the image about its centre, then shifts it."""
    extent = np.asarray(spacing) * image.shape[1:] / 2
    # From a voxel of the result to the one it is taken from, in units of half the image's sides.
    linear = build_matrix(pose.angles, 1.0, extent.tolist())
    offset = -linear @ (np.asarray(pose.shift) / extent)
    # Torch counts coordinates from -1 to 1, the last axis first.
    theta = torch.from_numpy(np.column_stack([linear[::-1, ::-1], offset[::-1]])).to(image)
    grid = F.affine_grid(theta[None], [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]
