"""Arrays in `.npz` files: no more is unpacked than a header claims, nothing is unpickled, checksums count."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.data.nifti import MAX_DEFLATE_RATIO, Reading, check_finite, check_memory
from pipeline.errors import Fault, FaultError, InputError
from pipeline.volume import without_geometry

_SUFFIX = ".npy"
_NATIVE = {"f": np.dtype(np.float32), "b": np.dtype(np.uint8)}
_NUM_KEPT = 4  # images and labels of the two parts that a training reads
_lock = Lock()


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What an array in a file claims to be.

    Attributes:
        shape: Its axes; at least one, none of them empty.
        dtype: Real numbers, in stored byte order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def is_npz(path: Path) -> bool:
    """Whether the file's name is that of a NumPy archive."""
    return path.suffix.lower() == ".npz"


def list_arrays(path: Path) -> list[str]:
    """Names of the arrays in a file, as stored.

    Raises:
        InputError: If it cannot be read, or is damaged.
    """
    with _opened(path) as archive:
        return [name.removesuffix(_SUFFIX) for name in archive.namelist() if name.endswith(_SUFFIX)]


def read_header(path: Path, name: str) -> ArrayHeader:
    """What the array claims to be, once that has been found possible.

    Raises:
        InputError: If there is no such array, it holds anything but numbers, is empty or damaged, or claims
            another size than the file has for it.
        ResourceError: If it would not fit into memory.
    """
    with _opened(path) as archive:
        info = _find(path, archive, name)
        with archive.open(info) as stream:
            return _judge_header(f"{path}: {name}", stream, info.file_size)


def read_array(path: Path, name: str) -> NDArray[Any]:
    """Reads an array, or gives the copy that was read before: rows are asked for one after the other.

    Returns:
        As stored; it cannot be written to.

    Raises:
        InputError, ResourceError: As `read_header`, and if its checksum fails.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(_unreadable(path, error)) from error
    with _lock:  # one thread unpacks, the other waits for it
        return _read_array(path, name, state.st_mtime_ns, state.st_size)


def row_channels(shape: tuple[int, ...]) -> int:
    """Channels of a row of an array `(N, H, W)`, `(N, H, W, D)` or, colours last, `(N, H, W, 3)`."""
    return 3 if len(shape) == 4 and shape[3] == 3 else 1


def read_row(path: Path, name: str, row: int) -> Reading:
    """Reads one image of an array that holds many.

    Args:
        path: The `.npz` file.
        name: Of an array `(N, H, W)`, `(N, H, W, D)` or `(N, H, W, 3)`, the last being red, green and blue.
        row: Of that array.

    Returns:
        A volume per channel, of shape `(H, W, 1)` or `(H, W, D)`; real numbers come out as float32.

    Raises:
        InputError, ResourceError: As `read_array`, and if there is no such row, or a number is not finite.
    """
    array, where = read_array(path, name), f"{path}: {name}[{row}]"
    if array.ndim not in (3, 4) or not 0 <= row < len(array):
        message = f"the array has shape {array.shape}; images lie along its first axis, numbered from 0"
        raise InputError(Fault(where, "missing-row", message))
    voxels = array[row]
    dtype = _NATIVE.get(voxels.dtype.kind, voxels.dtype.newbyteorder("="))
    with np.errstate(over="ignore"):  # what overflows turns infinite and is refused next
        voxels = voxels.astype(dtype)
    check_finite(where, voxels)
    channels = np.moveaxis(voxels, 2, 0) if row_channels(array.shape) == 3 else voxels[None]
    return Reading(tuple(without_geometry(channel) for channel in channels))


@lru_cache(maxsize=_NUM_KEPT)
def _read_array(path: Path, name: str, modified_ns: int, size: int) -> NDArray[Any]:
    """As `read_array`, anew when the file has changed."""
    del modified_ns, size  # part of the key only
    with _opened(path) as archive:
        info = _find(path, archive, name)
        with archive.open(info) as stream:
            _judge_header(f"{path}: {name}", stream, info.file_size)
        with archive.open(info) as stream:
            # With the last byte, which the header is known to reach, zipfile verifies the checksum.
            array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    array.flags.writeable = False
    return array


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; whatever is found wrong with it inside the block becomes an InputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FaultError:
        raise
    except OSError as error:
        raise InputError(_unreadable(path, error)) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        message = f"the .npz file is damaged or was cut short ({str(error)[:100]}); copy it again"
        raise InputError(Fault(str(path), "npz-damaged", message)) from error


def _find(path: Path, archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """Where an array lies, if the file can hold as many bytes of it as it says."""
    where, member = f"{path}: {name}", name + _SUFFIX
    if member not in archive.namelist():
        known = ", ".join(list_arrays(path)[:10]) or "none"
        message = f"there is no such array; the file holds {known}"
        raise InputError(Fault(where, "missing-array", message))
    info = archive.getinfo(member)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        message = "it is encrypted, or packed otherwise than NumPy does; save it with numpy.savez_compressed"
        raise InputError(Fault(where, "npz-packing", message))
    if info.file_size > MAX_DEFLATE_RATIO * info.compress_size:
        message = f"it claims to hold {info.file_size} bytes, more than its packed size allows; copy it again"
        raise InputError(Fault(where, "npz-damaged", message))
    check_memory(where, info.file_size)
    return info


def _judge_header(where: str, stream: IO[bytes], num_bytes: int) -> ArrayHeader:
    version = npy.read_magic(stream)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise InputError(Fault(where, "datatype", "an array holds numbers, not records; save them plainly"))
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        message = "it holds pickled Python objects, which could run code; save it as an array of numbers"
        raise InputError(Fault(where, "pickled", message))
    if dtype.kind not in "uifb":
        message = f"an array of real numbers is needed, not {dtype}; convert it"
        raise InputError(Fault(where, "datatype", message))
    if not shape or min(shape) < 1:
        raise InputError(Fault(where, "empty-array", f"its shape is {shape}; it holds nothing to read"))
    if stream.tell() + math.prod(shape) * dtype.itemsize != num_bytes:
        message = (
            f"it claims shape {shape} of {dtype}, but the file has {num_bytes} bytes for it; save it again"
        )
        raise InputError(Fault(where, "npz-damaged", message))
    return ArrayHeader(shape, dtype)


def _unreadable(path: Path, error: OSError) -> Fault:
    message = f"the file cannot be read ({(error.strerror or str(error)).lower()})"
    return Fault(str(path), "unreadable", message)
