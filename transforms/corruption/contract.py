"""What every corruption takes, gives and refuses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor


class Corruption(Protocol):
    """A way to make an image worse by a known amount."""

    def __call__(self, image: Tensor, spacing: Sequence[float], seed: int) -> Tensor:
        """Makes a worse copy of an image.

        All that is random is drawn on the CPU from the seed alone: the same seed gives the same bits on the
        same CPU, and on a GPU the same up to rounding. A stronger corruption of the same kind draws the same
        and does more of it.

        Args:
            image: `(C, H, W, D)` or `(C, H, W)` float32 on any device, in its own unit, not normalised;
                stays as it is.
            spacing: Millimetres per voxel along `H, W, D` or `H, W`.
            seed: Give every image its own.

        Returns:
            float32 on the same device and, but for thick slices, of the same shape.

        Raises:
            ValueError: Image or spacing are none that can be corrupted so.
        """


def require(is_met: bool, sentence: str) -> None:
    """Raises a `ValueError` with `sentence` where something is not as it has to be."""
    if not is_met:
        raise ValueError(sentence)


def require_between(value: float, low: float, high: float, what: str) -> None:
    """Refuses what is not a number from `low` to `high`, both included."""
    require(low <= value <= high, f"{what} has to lie between {low:g} and {high:g}; it is {value:g}.")


def require_image(image: Tensor, spacing: Sequence[float]) -> None:
    """Refuses what is not an image with its spacing."""
    require(
        image.ndim in {3, 4} and image.numel() > 0,
        "An image has the axes (C, H, W) or (C, H, W, D), none of them empty; "
        f"this has the shape {tuple(image.shape)}.",
    )
    require(image.dtype == torch.float32, f"An image to corrupt has to be float32; this is {image.dtype}.")
    require(bool(image.isfinite().all()), "An image to corrupt has to be finite; this holds infinity or NaN.")
    require(
        len(spacing) == image.ndim - 1 and all(0 < side < math.inf for side in spacing),
        f"An image of {image.ndim - 1} axes needs as many spacings in mm, all above 0; "
        f"given are {tuple(spacing)}.",
    )


def require_magnitude(image: Tensor, what: str) -> None:
    """Refuses an image that cannot be the magnitude of an MR signal."""
    lowest = float(image.min())
    require(
        lowest >= 0,
        f"{what} needs the magnitude image of an MR scan, without normalisation; "
        f"its lowest value is {lowest:g}, and a magnitude is never below 0.",
    )


def draw_from(seed: int) -> Generator:
    """A generator on the CPU, whose numbers do not depend on where the image is."""
    return Generator().manual_seed(seed)
