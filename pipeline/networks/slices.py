"""The way back that makes slices thicker and does nothing else."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pipeline.config.generators import GeneratorSection
from pipeline.networks.generators import AbstractGenerator

_MOST_SKIPPED = 1024  # voxels, about the longest images; all phases are about as frequent


class SliceThickening(AbstractGenerator):
    """The way back where sources have thicker slices, brought to the finer grid as jobs prepare them.

    Every `slice_distance` voxels of the last axis lies the centre of a slice, which is the mean of what is
    within its thickness; between the centres the image is interpolated linearly, and beyond the first and the
    last it stays as it is there. A prepared image begins at the centre of a slice and patches begin at any of
    its voxels, so a whole number of voxels lies between the two. The thickness alone is learnt: it is the
    distance at first, less where slices have gaps, and more where they overlap. The distance is to be seen in
    any source, so it is given. A network that was free to learn all of it moved anatomy as well (measured in
    `docs/enhancement.md`).

    Args:
        section: `slice_distance`, and the shape of the networks.
        channels: Of an image.

    Attributes:
        log_thickness: Natural logarithm of the slices' thickness as a share of their distance; 0 at first.
    """

    def __init__(self, section: GeneratorSection, channels: int) -> None:
        super().__init__(section, channels)
        assert section.slice_distance is not None, "checked"
        self._distance = section.slice_distance
        self.log_thickness = nn.Parameter(torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        """An image of thick slices, the first of them at a random place in each.

        Args:
            image: (B, channels + 1, H, W, D); the random numbers stand last, of which one counts.

        Returns:
            (B, channels, H, W, D) on the grid of `image`.
        """
        draws = image[:, -1, 0, 0, 0].float()
        skipped = (_MOST_SKIPPED * torch.special.ndtr(draws)).floor()  # voxels, before the patch begins
        first = (-skipped).remainder(self._distance)
        thickness = self._distance * self.log_thickness.float().exp()
        return _average(image[:, :-1], first, self._distance, thickness)


def thicken_slices(image: Tensor, distance: float) -> Tensor:
    """What a whole image becomes: the first slice's centre is its first voxel, and slices have no gaps.

    Args:
        image: (B, C, H, W, D).
        distance: Voxels of the last axis from one slice to the next.

    Returns:
        The same on the grid of `image`.
    """
    return _average(image, image.new_zeros(len(image)), distance, torch.tensor(distance))


def _average(image: Tensor, first: Tensor, distance: float, thickness: Tensor) -> Tensor:
    """Slices of `(B, C, H, W, D)`, interpolated; `(B,)` voxels lie before the centres of the first ones."""
    first, size = first.view(-1, 1, 1), image.shape[-1]
    voxels = torch.arange(size, device=first.device, dtype=torch.float32)
    numbers = torch.arange(math.floor(size / distance) + 1, device=first.device)
    last = ((size - 0.5 - first) / distance).floor()  # of the centres that lie inside
    centres = (first + distance * numbers).mT
    low = torch.maximum(voxels - 0.5, centres - thickness / 2)
    high = torch.minimum(voxels + 0.5, centres + thickness / 2)
    covered = (high - low).clamp(min=0)
    # A centre inside lies in a voxel, of which some is covered; beyond the last it may be none.
    slices = covered / covered.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    place = torch.minimum(((voxels - first) / distance).clamp(min=0), last).mT
    shares = (1 - (place - numbers).abs()).clamp(min=0) @ slices  # of every voxel, in every one of the result
    made: Tensor = torch.einsum("bchwz,byz->bchwy", image, shares.to(image))
    return made
