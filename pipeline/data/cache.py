"""Prepared voxels on disk: a safetensors file each, mapped into memory, and a hash of every byte beside it.

A file's name is a hash of all that its voxels are a function of, so a changed file or setting is prepared
anew and nothing stale can be served.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.files import atomic_path, sha256_of, write_text


def cached(folder: Path, key: object, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that `build` gave when it was last called for this key, mapped from their file.

    Args:
        folder: Where files lie.
        key: JSON-able; says all that the tensors depend on.
        build: Makes them if no whole file is there.

    Raises:
        ResourceError: If the folder cannot be written or the disk is full.
    """
    path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.safetensors"
    if not _is_whole(path):
        with atomic_path(path) as temporary:
            save_file(build(), temporary)
        write_text(_hash_path(path), sha256_of(path))
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def _is_whole(path: Path) -> bool:
    """Whether a file is there and every byte of it is what was written: the format has no checksum."""
    try:
        return _hash_path(path).read_text(encoding="utf-8") == sha256_of(path)
    except (OSError, UnicodeDecodeError):
        return False


def _hash_path(path: Path) -> Path:
    return path.with_suffix(".sha256")
