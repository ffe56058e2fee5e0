"""The file: an ordinary safetensors file whose header begins with a SHA-256 over every byte of it.

The hash stands in fixed bytes and is checked before anything is parsed.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.checkpoint.content import Checkpoint
from pipeline.checkpoint.layout import NEWEST_VERSION, gather, lay_out, version_of
from pipeline.errors import ConfigError, Fault, FaultError, IntegrityError
from pipeline.files import atomic_path

_MAGIC = b'{"__metadata__":{"format":"clinseg-checkpoint","sha256":"'
_HASH_START = 8 + len(_MAGIC)  # behind the eight bytes with the header's length
_NO_HASH = b"0" * 64
_LARGEST_HEADER = 100_000_000  # bytes; safetensors reads no larger one
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

# What reading a forged content can end in, the hash being right.
_MALFORMED = (
    SafetensorError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    RecursionError,
    struct.error,
)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> str:
    """Writes a checkpoint, whole or not at all; the same checkpoint gives the same bytes.

    safetensors' own writer puts metadata in a random order and would have to be followed by a second pass
    for the hash; its format is fixed and small, so the file is laid out here and read by safetensors.

    Returns:
        The file's content hash, 64 hexadecimal digits.

    Raises:
        TypeError: If something is no tensor, dict, list, tuple, number, string, boolean or None.
        ResourceError: If the disk is full or the folder cannot be written; an older file then stays.
    """
    content, named = lay_out(checkpoint)
    # Readers map tensors in place, so each must be aligned to its own item: the widest items come first.
    tensors = sorted(named.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header = _header(tensors, content)
    digest = hashlib.sha256(header)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for _, tensor in tensors:
            block = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            file.write(block)
            digest.update(block)
        file.seek(_HASH_START)
        file.write(digest.hexdigest().encode())
    return digest.hexdigest()


def is_checkpoint(path: Path) -> bool:
    """Whether a file begins as `write_checkpoint` makes it begin; False also where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_HASH_START)[8:] == _MAGIC
    except OSError:
        return False


def read_checkpoint(path: Path, *, with_state: bool = False) -> Checkpoint:
    """Reads a checkpoint after every byte of its file has been checked against its hash.

    Args:
        path: A file that `write_checkpoint` made.
        with_state: Whether to load the training state too. Else `state` is None and takes no memory.

    Raises:
        ConfigError: If there is no such file, it cannot be read, or a newer version wrote it.
        IntegrityError: If it is no checkpoint, or one byte of it is not what was written.
    """
    try:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "no file"
            message = f"a checkpoint file was expected, but this is {found}; check the path"
            raise ConfigError(Fault(str(path), "checkpoint-missing", message))
        with path.open("rb", buffering=0) as file:
            content_hash = _verified_hash(path, file)
            with safe_open(path, framework="pt") as archive:
                # Training may have put a newer file here meanwhile; what is read must be what was hashed.
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return _checkpoint_of(path, archive, content_hash, with_state=with_state)
        return read_checkpoint(path, with_state=with_state)
    except FaultError:
        raise
    except OSError as error:
        message = f"the checkpoint cannot be read ({(error.strerror or str(error)).lower()})"
        raise ConfigError(Fault(str(path), "checkpoint-unreadable", message)) from error
    except _MALFORMED as error:
        message = "its hash is right, yet its content is not a checkpoint's; do not trust its source"
        raise IntegrityError(Fault(str(path), "checkpoint-content", message)) from error


def _header(tensors: list[tuple[str, Tensor]], content: dict[str, Any]) -> bytes:
    """The safetensors header with zeros for a hash, preceded by its length and padded to eight bytes."""
    metadata = {
        "format": "clinseg-checkpoint",
        "sha256": _NO_HASH.decode(),
        "version": str(version_of(content)),
        "content": json.dumps(content, allow_nan=False),
    }
    entries: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name, tensor in tensors:
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name}: tensors of {tensor.dtype} cannot be stored")
        stop = start + tensor.numel() * tensor.itemsize
        shape = list(tensor.shape)
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > _LARGEST_HEADER:
        raise ValueError(f"everything but the tensors must fit in {_LARGEST_HEADER} bytes, not {len(header)}")
    assert header.startswith(_MAGIC), "readers look for the hash behind these bytes"
    return len(header).to_bytes(8, "little") + header


def _verified_hash(path: Path, file: FileIO) -> str:
    """The hash a file states, after comparing it with that of the bytes (its own 64 digits read as zeros)."""
    head = file.read(_HASH_START + len(_NO_HASH))
    if head[8:_HASH_START] != _MAGIC:
        message = (
            "it is not a clinseg checkpoint, or its beginning is damaged; name a file that `clinseg train` "
            "wrote (files of torch.save are never opened, since they can run code)"
        )
        raise IntegrityError(Fault(str(path), "not-a-checkpoint", message))
    digest = hashlib.sha256(head[:_HASH_START] + _NO_HASH)
    hashlib.file_digest(file, lambda: digest)
    if digest.hexdigest().encode() != head[_HASH_START:]:
        message = "the file is not what was written (its hash differs): restore a copy, or train again"
        raise IntegrityError(Fault(str(path), "checkpoint-damaged", message))
    return digest.hexdigest()


def _checkpoint_of(path: Path, archive: Any, content_hash: str, *, with_state: bool) -> Checkpoint:  # noqa: ANN401 - untyped
    metadata = archive.metadata()
    if int(metadata["version"]) > NEWEST_VERSION:
        found, newest = metadata["version"], NEWEST_VERSION
        message = f"it has checkpoint format {found}, this clinseg reads up to {newest}; update clinseg"
        raise ConfigError(Fault(str(path), "checkpoint-too-new", message))

    def tensor(name: str) -> Tensor:
        # Some versions of safetensors hand out windows into the file, which may change after it was checked.
        copied: Tensor = archive.get_tensor(name).clone()
        return copied

    names = list(archive.keys())
    return gather(json.loads(metadata["content"]), names, tensor, content_hash, with_state=with_state)
