"""NIfTI files, read once and to the last byte.

Readers in wide use accept files that are cut short or damaged, and fill in what is missing. Here the header
is judged first; then the voxels are read in chunks into a buffer of exactly the size that the header claims,
and the file to its end, so that gzip's checksum is verified and a decompression bomb stops at that size.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.data.nifti_header import Layout, read_layout
from pipeline.errors import Fault, InputError, ResourceError
from pipeline.memory import available_bytes, format_size
from pipeline.volume import Volume, check_grid

_SUFFIX = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
MAX_DEFLATE_RATIO = 1032
"""Of the deflate format itself: what claims to hold more is lying."""

_CHUNK = 2**20


@dataclass(frozen=True)
class Reading:
    """What one image file or series holds.

    Attributes:
        volumes: One per channel; all share one grid.
        warnings: What was accepted but deserves a look.
    """

    volumes: tuple[Volume, ...]
    warnings: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        """Every reader ends here, so that no grid comes in but by the door."""
        check_grid("image", self.volumes[0].grid)
        assert all(volume.grid.is_close(self.volumes[0].grid) for volume in self.volumes)


def is_nifti(path: Path) -> bool:
    """Whether the file's name is that of a NIfTI file."""
    return _SUFFIX.search(path.name) is not None


def nifti_stem(path: Path) -> str:
    """The file's name without `.nii` or `.nii.gz`."""
    return _SUFFIX.sub("", path.name)


def read_nifti(path: Path) -> Reading:
    """Reads a `.nii` or `.nii.gz` of either version and byte order.

    A two-dimensional image becomes one slice, the frames of a four-dimensional one become volumes. Stored
    types are kept, in native byte order, but scaled values and float64 come out as float32. Where sform and
    qform disagree the sform is used, with a warning.

    Raises:
        InputError: If the file is damaged, lies about itself or is outside of what is supported.
        ResourceError: If the voxels do not fit into the memory that is available.
    """
    where = str(path)
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as stream:
                layout, raw = _read(where, cast(BinaryIO, stream), MAX_DEFLATE_RATIO)
        else:
            with path.open("rb") as file:
                layout, raw = _read(where, file)
    except EOFError as error:
        message = "the file ends before its last voxel; copy it again from its source"
        raise InputError(Fault(where, "truncated", message)) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        message = "the compressed data are damaged (gzip's own check fails); copy the file again"
        raise InputError(Fault(where, "gzip-damaged", message)) from error
    except OSError as error:
        message = f"the file cannot be read ({(error.strerror or str(error)).lower()})"
        raise InputError(Fault(where, "unreadable", message)) from error
    array = _meant_values(raw, layout.scale)
    check_finite(where, array)
    frames = (Volume(array[..., frame], layout.grid) for frame in range(layout.num_frames))
    return Reading(tuple(frames), layout.warnings)


def check_memory(where: str, num_bytes: int) -> None:
    """Says so, by a ResourceError, if `num_bytes` more do not fit into memory."""
    available = available_bytes()
    if num_bytes > available:
        message = (
            f"reading it takes {format_size(num_bytes)} of memory, {format_size(available)} are available; "
            "close other programs, or crop the image"
        )
        raise ResourceError(Fault(where, "memory", message))


def check_finite(where: str, array: NDArray[Any]) -> None:
    """Says so, by an InputError, if some voxels are NaN or infinite."""
    with np.errstate(invalid="ignore"):
        if np.isfinite(array.min()) and np.isfinite(array.max()):  # NaN and infinity both show there
            return
    count = array.size - int(np.count_nonzero(np.isfinite(array)))
    message = (
        f"{count} of {array.size} voxels are not finite numbers (NaN, infinite, or beyond float32); "
        "replace them by the background's value and save the file again"
    )
    raise InputError(Fault(where, "non-finite", message))


def _read(where: str, stream: BinaryIO, ratio: int = 1) -> tuple[Layout, NDArray[Any]]:
    """Reads the header and exactly the voxels that it claims, `(I, J, K, frames)`, and the stream to its end.

    Nothing is allocated for a header that claims more than `ratio` times the bytes of the file.
    """
    layout = read_layout(where, stream)
    if layout.offset + layout.num_bytes > ratio * os.fstat(stream.fileno()).st_size:
        raise EOFError
    num_converted = layout.num_bytes // layout.dtype.itemsize * 4
    check_memory(
        where, layout.num_bytes + (num_converted if _is_converted(layout.dtype, layout.scale) else 0)
    )
    stream.seek(layout.offset)
    raw = np.empty(layout.num_bytes, dtype=np.uint8)
    view, filled = raw.data, 0
    while filled < len(view):
        # typing's BinaryIO has no readinto, which every file and gzip stream has.
        num_read = stream.readinto(view[filled : filled + _CHUNK])  # type: ignore[attr-defined]
        if not num_read:
            raise EOFError
        filled += num_read
    if stream.read(1):  # looking past the last voxel also makes gzip verify its checksum
        message = "the file goes on after its last voxel; its header is wrong or something was appended"
        raise InputError(Fault(where, "trailing-bytes", message))
    shape = (*layout.grid.shape, layout.num_frames)
    return layout, raw.view(layout.dtype).reshape(shape, order="F")


def _is_converted(dtype: np.dtype[Any], scale: tuple[float, float] | None) -> bool:
    return scale is not None or (dtype.kind == "f" and dtype.itemsize > 4)


def _meant_values(raw: NDArray[Any], scale: tuple[float, float] | None) -> NDArray[Any]:
    """Stored values in native byte order, or float32 where they are scaled or wider than that."""
    if not _is_converted(raw.dtype, scale):
        return raw.astype(raw.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows turns infinite and is refused next
        array = raw.astype(np.float32)
        if scale is not None:
            slope, inter = scale
            array *= slope
            array += inter
    return array
