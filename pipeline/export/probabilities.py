"""Probabilities as NIfTI files, written as they come: a volume of them never is in memory."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.export.nifti import build_header
from pipeline.files import atomic_path
from pipeline.volume import Grid


class ProbabilityFile:
    """Voxels of a file that is being written.

    Args:
        voxels: `(I, J, K, C)` float32, mapped.
        mapping: The memory they are mapped to.
    """

    def __init__(self, voxels: NDArray[np.float32], mapping: mmap.mmap) -> None:
        self._voxels = voxels
        self._mapping = mapping

    def put(self, place: tuple[slice, slice, slice], probabilities: Tensor) -> None:
        """Writes `(C, …)` probabilities to a place on the grid."""
        for channel, values in enumerate(probabilities.cpu().numpy()):
            self._voxels[(*place, channel)] = values
        # Written pages leave the process; the system takes them to disk.
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)


@contextmanager
def write_probabilities(path: Path, grid: Grid, names: Sequence[str]) -> Iterator[ProbabilityFile]:
    """Opens a four-dimensional NIfTI file for probabilities; it gets its name when all are written.

    Args:
        path: Ends in `.nii`: what is compressed cannot be written in pieces.
        grid: The image's geometry.
        names: What the frames are called; goes into a header extension.

    Raises:
        ResourceError: If the disk is full, which is known at once, or the folder cannot be written.
    """
    header = build_header(grid, np.dtype(np.float32), {"frames": list(names)}, len(names))
    shape = (*grid.shape, len(names))
    with atomic_path(path) as temporary, temporary.open("wb+") as file:
        header.write_to(file)
        offset = int(header.get_data_offset())
        size = offset + 4 * math.prod(shape)
        # A mapped file that does not fit on the disk would end the process: the space is taken first.
        if hasattr(os, "posix_fallocate"):
            file.flush()
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        mapping = mmap.mmap(file.fileno(), size)
        yield ProbabilityFile(np.ndarray(shape, np.float32, mapping, offset, order="F"), mapping)
        mapping.flush()
