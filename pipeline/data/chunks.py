"""Large volumes in the cache: compressed chunks, of which a training patch reads those that it touches.

A CT whose air is clipped takes about a ninth of its bytes so. Small volumes stay as they are: the system's
page cache holds them, and nothing has to be unpacked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numcodecs.blosc import SHUFFLE, Blosc
from torch import Tensor

LARGE = 2**25
"""Bytes from which on a volume is kept in chunks."""

_CHUNK = (1, 32, 32, 32)  # a patch touches few voxels that it does not need
_CODEC = Blosc("zstd", clevel=3, shuffle=SHUFFLE)


class Chunked:
    """A volume `(C, H, W, D)` in compressed chunks of one channel, mapped from a file.

    Args:
        shape: Of the volume.
        dtype: Of its voxels.
        offsets: Where each chunk begins in `data`, and where the last one ends.
        data: The chunks' bytes, channel by channel, the last axis fastest.

    Attributes:
        shape: Of the volume.
        nbytes: What it takes on disk.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, offsets: Tensor, data: Tensor) -> None:
        self.shape = torch.Size(shape)
        self.nbytes = data.nbytes + offsets.nbytes
        self._type = torch.empty(0, dtype=dtype)
        self._offsets, self._data = offsets, data

    def __getitem__(self, box: tuple[slice, ...]) -> Tensor:
        """The voxels of a box, unpacked from the chunks that it touches; slices have a step of 1."""
        spans = [range(*span.indices(n)) for span, n in zip(box, self.shape, strict=True)]
        found = self._type.new_empty([len(span) for span in spans])
        touched = [
            range(span.start // step, math.ceil(span.stop / step))
            for span, step in zip(spans, _CHUNK, strict=True)
        ]
        for place in itertools.product(*touched) if found.numel() else ():
            chunk = self._unpack(place)
            source, target = [], []
            for k, step, length, span in zip(place, _CHUNK, chunk.shape, spans, strict=True):
                low, high = max(span.start, k * step), min(span.stop, k * step + length)
                source.append(slice(low - k * step, high - k * step))
                target.append(slice(low - span.start, high - span.start))
            found[tuple(target)] = chunk[tuple(source)]
        return found

    def load(self) -> Tensor:
        """All of it."""
        return self[tuple(slice(n) for n in self.shape)]

    def _unpack(self, place: Sequence[int]) -> Tensor:
        number = np.ravel_multi_index(tuple(place), _chunks_per_axis(self.shape))
        begin, end = self._offsets[int(number) : int(number) + 2].tolist()
        size = [min(step, n - k * step) for n, k, step in zip(self.shape, place, _CHUNK, strict=True)]
        chunk = self._type.new_empty(size)
        _CODEC.decode(self._data[begin:end].numpy(), out=chunk.numpy())
        return chunk


Voxels = Tensor | Chunked


def load(voxels: Voxels) -> Tensor:
    """All voxels of a volume, however it is kept."""
    return voxels if isinstance(voxels, Tensor) else voxels.load()


def keep(name: str, volume: Tensor) -> dict[str, Tensor]:
    """What a cache file holds of a volume: itself, or if it is large its chunks.

    Args:
        name: Under which `find` finds it.
        volume: `(C, H, W, D)`, of any type that numpy knows.
    """
    if volume.nbytes < LARGE:
        return {name: volume}
    pieces = []
    for place in np.ndindex(*_chunks_per_axis(volume.shape)):
        box = tuple(slice(k * step, (k + 1) * step) for k, step in zip(place, _CHUNK, strict=True))
        pieces.append(_CODEC.encode(volume[box].contiguous().numpy()))
    offsets = [0, *itertools.accumulate(len(piece) for piece in pieces)]
    return {
        f"{name}/chunks": torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.uint8),
        f"{name}/offsets": torch.tensor(offsets),
        f"{name}/shape": torch.tensor(volume.shape),
        f"{name}/type": volume.new_empty(0),
    }


def find(name: str, tensors: Mapping[str, Tensor]) -> Voxels:
    """The volume of which a cache file holds what `keep` gave.

    Args:
        name: As it was kept.
        tensors: What the file holds.

    Raises:
        KeyError: If nothing of this name was kept.
    """
    if name in tensors:
        return tensors[name]
    shape, kind = tensors[f"{name}/shape"].tolist(), tensors[f"{name}/type"].dtype
    return Chunked(shape, kind, tensors[f"{name}/offsets"], tensors[f"{name}/chunks"])


def _chunks_per_axis(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.ceil(n / step) for n, step in zip(shape, _CHUNK, strict=True))
