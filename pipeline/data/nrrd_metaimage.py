"""NRRD and MetaImage, for `clinseg convert` only.

Their readers take a file that is cut short for a whole one, follow names of other files, and are not made for
damaged input. So the header is judged here first, the data are counted to the last byte, and the reader runs
in a process of its own with limits on memory and time, of which only plain arrays are taken.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np

from pipeline.data.nifti import Reading, check_finite, check_memory
from pipeline.errors import Fault, InputError
from pipeline.volume import Grid, Volume

_HEADER = 2**16  # bytes within which a header ends
_MAX_VOXELS = 2**31
_SECONDS = 300
_SPARE = 2**30  # what the reader takes beside the voxels
_CHUNK = 2**20
_ANY_HEADER = 47  # of zlib or gzip, whichever stands there
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4
    ),
    **{"float": 4, "double": 8},
}
_PATIENT_SPACES = re.compile("(left-posterior|left-anterior|right-anterior)-superior|lps|las|ras")
"""Those that say where left is; the reader takes any other for the first."""
_MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", "", "?"}
_META_TYPES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    "MET_DOUBLE": 8,
}


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a header says of its data.

    Attributes:
        shape: Voxels per axis, the fastest first.
        itemsize: Bytes per voxel.
        is_packed: Whether the data are deflated.
        offset: Byte at which they begin.
        has_orientation: Whether the header says how the axes lie in the patient.
    """

    shape: tuple[int, ...]
    itemsize: int
    is_packed: bool
    offset: int
    has_orientation: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of all voxels."""
        return int(np.prod(self.shape, dtype=object)) * self.itemsize


class _RefusedError(Exception):
    """Rule and message of a header that is not taken."""


def is_foreign(path: Path) -> bool:
    """Whether the file's name is that of an NRRD file or a MetaImage, also of one in two parts."""
    return path.suffix.lower() in (".nrrd", ".nhdr", ".mha", ".mhd")


def read_foreign(path: Path) -> Reading:
    """Reads an NRRD file or a MetaImage with its data inside.

    Raises:
        InputError: If it is damaged, lies about itself, is no volume of three axes, or cannot be read within
            the limits.
        ResourceError: If it does not fit into the memory that is available.
    """
    where = str(path)
    parse: Callable[[bytes], _Claim] = (
        _parse_nrrd if path.suffix.lower() in (".nrrd", ".nhdr") else _parse_meta
    )
    try:
        with path.open("rb") as file:
            claim = parse(file.read(_HEADER))
            _judge(claim)
            check_memory(where, 3 * claim.num_bytes)
            file.seek(claim.offset)
            _count(file, claim)
    except _RefusedError as refusal:
        raise InputError(Fault(where, *refusal.args)) from refusal
    except (ValueError, LookupError, zlib.error) as error:
        message = "its header or its data are damaged; save it again with the program it comes from"
        raise InputError(Fault(where, "damaged", message)) from error
    except OSError as error:
        message = f"the file cannot be read ({(error.strerror or 'error').lower()})"
        raise InputError(Fault(where, "unreadable", message)) from error
    return _read_in_child(path, claim)


def _fields(header: bytes, mark: str) -> Mapping[str, str]:
    """Values by key, in lower case, of a header in lines."""
    lines = header.decode("latin-1").splitlines()
    pairs = (line.partition(mark) for line in lines if mark in line and not line.startswith("#"))
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _parse_nrrd(content: bytes) -> _Claim:
    if not content.startswith(b"NRRD000"):
        raise ValueError("no NRRD")
    # The first empty line, however lines end: voxels may look like one.
    end = re.search(rb"\r?\n\r?\n", content)
    header, gap = (content, b"") if end is None else (content[: end.start()], end[0])
    fields = _fields(header, ":")
    if {"data file", "datafile"} & set(fields):
        raise _RefusedError("detached", "its data lie in another file; save it as one .nrrd")
    if {"line skip", "lineskip", "byte skip", "byteskip"} & set(fields):
        raise _RefusedError("skipped-bytes", "it skips bytes before its data; save it without that")
    encoding = fields["encoding"].lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise _RefusedError("encoding", f"data are read raw or gzipped, not as {encoding[:20]}; save it so")
    directions = fields.get("space directions", "")
    if "none" in directions.lower():
        raise _RefusedError("dimensions", "an axis lies nowhere in space; save it as a volume of three axes")
    _refuse_units(re.findall(r'"([^"]*)"', fields.get("space units", "") + fields.get("units", "")))
    return _Claim(
        shape=tuple(int(size) for size in fields["sizes"].split()),
        itemsize=_itemsize(_NRRD_TYPES, fields["type"].lower()),
        is_packed=encoding != "raw",
        offset=len(header) + len(gap),
        has_orientation=bool(directions and _PATIENT_SPACES.fullmatch(fields.get("space", "").lower())),
    )


def _parse_meta(content: bytes) -> _Claim:
    end = content.index(b"\n", content.index(b"ElementDataFile")) + 1
    fields = _fields(content[:end], "=")
    if fields["elementdatafile"] != "LOCAL":
        raise _RefusedError("detached", "its data lie in another file; save it as one .mha")
    if int(fields.get("headersize", 0)) or int(fields.get("elementnumberofchannels", 1)) != 1:
        raise _RefusedError(
            "num-channels", "a volume of one channel right behind its header is needed; save it so"
        )
    _refuse_units([fields.get("distanceunits", "")])
    slope, shift = (fields.get(f"elementtointensityfunction{name}") for name in ("slope", "offset"))
    if (float(slope or 1), float(shift or 0)) != (1.0, 0.0):
        raise _RefusedError("rescale", "its values are still to be scaled; save it with the final values")
    return _Claim(
        shape=tuple(int(size) for size in fields["dimsize"].split()),
        itemsize=_itemsize(_META_TYPES, fields["elementtype"].upper()),
        is_packed=fields.get("compresseddata", "False").lower() == "true",
        offset=end,
        has_orientation=bool({"transformmatrix", "rotation", "orientation"} & set(fields)),
    )


def _itemsize(known: Mapping[str, int], name: str) -> int:
    if name not in known:
        message = (
            f"voxels are read as float or as integers of up to 32 bits, not as {name[:20]!r}; save it so"
        )
        raise _RefusedError("voxel-type", message)
    return known[name]


def _refuse_units(units: Sequence[str]) -> None:
    """The reader takes all numbers for millimetres."""
    if odd := [unit for unit in units if unit.lower() not in _MILLIMETRES]:
        raise _RefusedError("units", f"lengths are read in mm, these are in {odd[0][:20]!r}; save it in mm")


def _judge(claim: _Claim) -> None:
    told = " x ".join(map(str, claim.shape))
    if len(claim.shape) != 3 or min(claim.shape) < 1:
        raise _RefusedError("dimensions", f"an image has 3 axes, this one is {told}; split or crop it")
    if int(np.prod(claim.shape, dtype=object)) > _MAX_VOXELS:
        message = f"the header claims {told} voxels, {_MAX_VOXELS:.3g} are the most accepted; crop the image"
        raise _RefusedError("too-large", message)


def _count(file: BinaryIO, claim: _Claim) -> None:
    """Refuses data that are fewer or more bytes than the header says; none are kept."""
    count, is_whole = os.fstat(file.fileno()).st_size - claim.offset, True
    if claim.is_packed:
        unpack = zlib.decompressobj(_ANY_HEADER)
        count = 0
        while not unpack.eof and count <= claim.num_bytes:
            packed = unpack.unconsumed_tail or file.read(_CHUNK)
            if not packed:
                break
            count += len(unpack.decompress(packed, _CHUNK))
        is_whole = unpack.eof  # the checksum stood behind the data, and fitted
    if count > claim.num_bytes:
        raise _RefusedError("trailing-bytes", "the data go on after the last voxel; the header is wrong")
    if count < claim.num_bytes or not is_whole:
        raise _RefusedError("truncated", "the file ends before its last voxel; copy it again from its source")


def _read_in_child(path: Path, claim: _Claim) -> Reading:
    where = str(path)
    limits = {
        resource.RLIMIT_DATA: 4 * claim.num_bytes + _SPARE,
        resource.RLIMIT_FSIZE: claim.num_bytes + 2**16,
        resource.RLIMIT_CPU: _SECONDS,
    }

    def confine() -> None:
        for kind, value in limits.items():
            resource.setrlimit(kind, (value, value))

    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipeline.data.nrrd_metaimage_child", str(path.resolve()), folder]
        try:
            done = subprocess.run(  # noqa: S603 - our own program
                command, preexec_fn=confine, timeout=_SECONDS, capture_output=True, check=False
            )  # fmt: skip
            is_done = done.returncode == 0
        except subprocess.TimeoutExpired:
            is_done = False
        if not is_done:
            message = "it cannot be read within the limits of time and memory; save it again as NIfTI"
            raise InputError(Fault(where, "undecodable", message))
        array = np.load(folder + "/voxels.npy", allow_pickle=False)
        affine = np.load(folder + "/affine.npy", allow_pickle=False)
    if array.shape != claim.shape or array.dtype.kind not in "uif" or affine.shape != (4, 4):
        raise InputError(Fault(where, "undecodable", "its reader gave another image than its header says"))
    check_finite(where, array)
    affine = _LPS_TO_RAS @ affine
    shape = (claim.shape[0], claim.shape[1], claim.shape[2])
    grid = Grid(shape, affine, sform=affine)
    message = (
        f"no orientation is stored; {grid.orientation} is assumed. Left and right may be swapped: write the "
        "true orientation into the file"
    )
    doubts = () if claim.has_orientation else (Fault(where, "no-orientation", message),)
    return Reading((Volume(array, grid),), doubts)
