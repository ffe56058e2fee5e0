"""Files that are whole or absent: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from pipeline.errors import ConfigError, Fault, ResourceError

_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder; on success it becomes `path`, on failure it vanishes.

    The temporary name keeps all suffixes of `path`, since writers choose their format by them, and is another
    one each time: threads and processes may be writing the same file.

    Raises:
        ResourceError: If the folder cannot be written or the disk is full; `path` is then as it was before.
    """
    temporary = path.with_name(f".{secrets.token_hex(4)}-partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise resource_error(path, error) from error
    finally:
        # If even this fails, the error under way says more.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder in the same place; on success it becomes `path`, on failure it vanishes.

    Whatever a killed process left there before is removed first. The files in it have to be on disk already,
    as `atomic_path` leaves them.

    Raises:
        ResourceError: If it cannot be written or there is something at `path` by then.
    """
    temporary = path.with_name(f".partial-{path.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise resource_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Writes a readable JSON object, whole or not at all; a bound that is unknown (infinite) becomes null.

    Args:
        path: Where to write.
        content: Mappings, lists, tuples and what JSON has.
    """
    write_text(path, json.dumps(_without_infinity(content), indent=1, ensure_ascii=False) + "\n")


def remove_files(paths: Iterable[Path]) -> None:
    """Removes those of the files that are there.

    Raises:
        ResourceError: If one cannot be removed.
    """
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise resource_error(path, error) from error


def check_writable(folder: Path) -> None:
    """Makes `folder` if need be and writes to it once: a long job must not learn at its end that it cannot.

    Raises:
        ResourceError: If the folder cannot be made or written, or the disk is full.
    """
    # A name that nobody else has: neither a file of the user's nor another command's trial.
    trial = folder / f".{secrets.token_hex(4)}-writable"
    try:
        with atomic_path(trial) as temporary:
            temporary.write_bytes(b"\n" * 4096)
    except ResourceError as error:
        raise ResourceError(replace(fault, where=str(folder)) for fault in error.faults) from error
    trial.unlink(missing_ok=True)


def check_output(path: Path, read: Iterable[Path] = ()) -> None:
    """The same of a file: its folder is made and can be written, and nothing is lost by it that is read.

    Args:
        path: What is to be written at the end.
        read: What is read before.

    Raises:
        ConfigError: If it is a folder, or something that is read.
        ResourceError: If its folder cannot be made or written, or the disk is full.
    """
    if path.is_dir():
        raise ConfigError(Fault(str(path), "is-folder", "it is a folder; name the file to be written"))
    if path.resolve() in {one.resolve() for one in read}:
        message = "it is read by this very command, and would be replaced; name another file"
        raise ConfigError(Fault(str(path), "would-overwrite", message))
    check_writable(path.parent)


def resource_error(path: Path, error: OSError) -> ResourceError:
    """The error for people behind a failed write to `path`."""
    if error.errno in _OUT_OF_SPACE:
        message = "the disk is full; free some space or choose another folder, then run the command again"
        return ResourceError(Fault(str(path), "disk-full", message))
    reason = (error.strerror or str(error)).lower()
    message = f"it cannot be written ({reason}); choose another folder or mend its permissions"
    return ResourceError(Fault(str(path), "not-writable", message))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _without_infinity(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_infinity(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(part) for part in value]
    return None if isinstance(value, float) and math.isinf(value) else value
