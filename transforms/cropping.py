"""Cutting a box out of a volume that may reach beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Size, Tensor


class Sliceable(Protocol):
    """What boxes can be cut out of: a tensor, or what unpacks only what is asked for."""

    @property
    def shape(self) -> Size:
        """Voxels per axis."""

    def __getitem__(self, box: tuple[slice, ...], /) -> Tensor:
        """The voxels of a box."""


def crop(volume: Sliceable, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """Cuts `(C, *size)` out of `(C, H, W, D)`.

    Outside of the volume lies 0, which is the mean after normalisation and the background of labels.

    Args:
        volume: Any type.
        start: First voxel of the box per axis; may be negative.
        size: Voxels of the box per axis; it overlaps the volume.

    Returns:
        A view where the box lies inside, else a copy.
    """
    source, target = [slice(None)], [slice(None)]
    for begin, length, end in zip(start, size, volume.shape[1:], strict=True):
        low, high = max(begin, 0), min(begin + length, end)
        source.append(slice(low, high))
        target.append(slice(low - begin, high - begin))
    inside = volume[tuple(source)]
    if tuple(inside.shape[1:]) == tuple(size):
        return inside
    box = inside.new_zeros((volume.shape[0], *size))
    box[tuple(target)] = inside
    return box
