"""NIfTI files without the text that programs leave in their headers."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib

from pipeline.errors import Fault, InputError
from pipeline.files import atomic_path

_TEXTS = ("descrip", "aux_file", "intent_name", "db_name", "data_type", "unused_str")
_PROGRAMS = (
    r"(none|fsl|spm|freesurfer|itk|ants|afni|mrtrix|nibabel|dcm2nii|clinseg|label|float|int|uint)(?![a-z])"
)
"""How texts begin that name a program or a type, and nobody."""

_OURS = b'{"clinseg":'
_MAX_OFFSET = 2**26  # as whoever reads the voxels has it
_CHUNK = 2**20


def clean_nifti(path: Path, target: Path) -> None:
    """Writes the same voxels with the same geometry, without texts, extensions and what follows the voxels.

    Raises:
        InputError: If it is no single NIfTI file, or damaged.
        ResourceError: If the file cannot be written.
    """
    with atomic_path(target) as temporary:
        try:
            with _reading(path) as source, _writing(temporary) as output:
                header, offset, num_bytes = _read_header(source)
                output.write(header)
                source.seek(offset)
                _copy(source, output, num_bytes)
        except (gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
            message = "it is damaged, or no single NIfTI file; copy it again from its source"
            raise InputError(Fault(str(path), "unreadable", message)) from error


def header_texts(path: Path) -> tuple[str, ...]:
    """Names of the fields in which a name could stand: texts that no known program writes, and extensions.

    Empty for a file that is no NIfTI file, or damaged: whoever reads it says so.
    """
    try:
        with _reading(path) as source:
            header, offset = _parse_header(source)
            found = [name for name in _TEXTS if name in header.keys() and _is_odd(header[name].item())]  # noqa: SIM118 - nibabel's headers have keys, and no `in`
            rest = source.read(min(offset - header.sizeof_hdr, _CHUNK))
    except (OSError, EOFError, zlib.error, ValueError):
        return ()
    return (*found, *(["an extension"] if any(rest[4:]) and _OURS not in rest else []))


def _is_odd(value: bytes) -> bool:
    text = value.replace(b"\0", b" ").decode("latin-1").strip()
    return bool(re.search("[^\\W\\d_]{2}", text)) and not re.match(_PROGRAMS, text, re.IGNORECASE)


def _read_header(source: BinaryIO) -> tuple[bytes, int, int]:
    """A header without texts and its end; where in the source voxels begin, and how many bytes they are."""
    header, offset = _parse_header(source)
    num_axes, *sizes = (int(number) for number in header["dim"])
    if not 1 <= num_axes <= len(sizes) or min(sizes[:num_axes]) < 1:
        raise ValueError("no size")
    num_bytes = -(-math.prod(sizes[:num_axes]) * int(header["bitpix"]) // 8)
    for name in set(_TEXTS) & set(header.keys()):
        header[name] = b""
    header["vox_offset"] = header.sizeof_hdr + 4
    return header.binaryblock + bytes(4), offset, num_bytes


def _copy(source: BinaryIO, output: BinaryIO, left: int) -> None:
    """Copies as many bytes as are left, and reads on to the end, where gzip's checksum stands."""
    while block := source.read(_CHUNK):
        output.write(block[:left])
        left -= min(left, len(block))
    if left:
        raise EOFError


def _parse_header(source: BinaryIO) -> tuple[nib.Nifti1Header, int]:
    """A header as it is, and where the voxels begin."""
    start = source.read(4)
    sizes = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
    size = next((n for n in sizes if n in (int.from_bytes(start, "little"), int.from_bytes(start, "big"))), 0)
    if not size:
        raise ValueError("no NIfTI header")
    block = start + source.read(size - 4)
    if len(block) < size:
        raise EOFError
    # nibabel's headers have no types.
    header = sizes[size](block, check=False)  # type: ignore[no-untyped-call]
    offset = float(header["vox_offset"])  # infinite or NaN in a damaged file, or where no file can be read
    if not size + 4 <= offset <= _MAX_OFFSET:
        raise ValueError("the voxels do not follow the header")
    return header, int(offset)


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as file:
        if path.suffix.lower() != ".gz":
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield cast(BinaryIO, unpacked)


@contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        if path.suffix.lower() != ".gz":
            yield file
            return
        # Neither name nor time go into the file.
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
            yield cast(BinaryIO, packed)
