"""The files of a bundle, in a folder or a zip: no name in it becomes a path."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from pipeline.bundles.plain import ConfigFile, read_config
from pipeline.errors import ConfigError, Fault, FaultError, InputError

_CONFIGS: Final = tuple(
    f"configs/{name}.{suffix}" for name in ("inference", "train") for suffix in ("json", "yaml", "yml")
)
METADATA: Final = "configs/metadata.json"
OWN: Final = "models/clinseg.safetensors"
"""The checkpoint that `clinseg export` puts beside what others run (`pipeline.export.bundle.OWN`, which this
room does not see; a test takes one way and the other)."""
_WEIGHTS: Final = ("models/model.safetensors", "models/model.pt", "models/model.ts")
_WANTED: Final = (*_CONFIGS, METADATA, OWN, *_WEIGHTS)
_MOST_ENTRIES, _LARGEST_RATIO = 10_000, 200
_PACKED: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGED: Final = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    OSError,
)
"""What `zipfile` ends in over changed or missing bytes; a ValueError where a name is no UTF-8."""


@dataclass(frozen=True)
class Bundle:
    """What a bundle says, and where its weights lie.

    Attributes:
        name: Of its folder or zip.
        metadata: `configs/metadata.json`.
        config: The inference config, or the training config where there is none.
        weights: File of its weights.
    """

    name: str
    metadata: ConfigFile
    config: ConfigFile
    weights: Path


@contextmanager
def opened(path: Path) -> Iterator[dict[str, Path]]:
    """The files of a bundle that are of use, by their names in it; those of a zip are gone afterwards.

    Raises:
        ConfigError: If there is no such folder or zip.
        InputError: If its entries lead elsewhere, or would not fit.
    """
    if path.is_dir():
        yield _in_folder(path)
    elif path.is_file() and zipfile.is_zipfile(path):
        with tempfile.TemporaryDirectory(prefix="clinseg-bundle-") as folder:
            yield _unpack(path, Path(folder))
    else:
        message = "a bundle is a folder or a zip with configs/ and models/; check the path"
        raise ConfigError(Fault(str(path), "bundle-missing", message))


def read_bundle(path: Path, files: dict[str, Path]) -> Bundle:
    """Reads the configs of a bundle.

    Raises:
        InputError: With all that is missing, cannot be read or is no plain data.
    """
    faults: list[Fault] = []
    config = next((name for name in _CONFIGS if name in files), None)
    weights = next((name for name in _WEIGHTS if name in files), None)
    for is_there, expected in (
        (METADATA in files, METADATA),
        (config, "configs/inference.json"),
        (weights, "models/model.safetensors or models/model.pt"),
    ):
        if not is_there:
            faults.append(Fault(str(path), "bundle-incomplete", f"{expected} is not in it"))
    read = {}
    for name in (METADATA, config):
        if name is not None and name in files:
            try:
                read[name] = read_config(name, files[name])
            except ConfigError as error:
                faults += error.faults
    if faults or config is None or weights is None:
        raise InputError(faults)
    return Bundle(path.resolve().name.removesuffix(".zip"), read[METADATA], read[config], files[weights])


def _in_folder(path: Path) -> dict[str, Path]:
    found = {name: path / name for name in _WANTED if (path / name).is_file()}
    root = path.resolve()
    message = "it is a link that leads out of the bundle; put the file itself there"
    faults = [
        Fault(f"{path}: {name}", "bundle-link", message)
        for name, file in found.items()
        if not file.resolve().is_relative_to(root)
    ]
    if faults:
        raise InputError(faults)
    return found


def _unpack(path: Path, folder: Path) -> dict[str, Path]:
    """Copies what is wanted out of a zip, to names of our own."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if faults := list(_entry_faults(path, entries, shutil.disk_usage(folder).free)):
                raise InputError(faults)
            root = _root(entries)
            found = {}
            for entry in entries:
                name = entry.filename.removeprefix(root)
                if name not in _WANTED or entry.is_dir():
                    continue
                target = folder / name.replace("/", "-")
                with archive.open(entry) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
                found[name] = target
            return found
    except FaultError:
        raise
    except _DAMAGED as error:
        reason = str(error)[:100] or type(error).__name__
        message = f"the zip cannot be read ({reason}); fetch it again from where it comes from"
        raise InputError(Fault(str(path), "zip-unreadable", message)) from error


def _entry_faults(path: Path, entries: list[zipfile.ZipInfo], free: int) -> Iterator[Fault]:
    if len(entries) > _MOST_ENTRIES or len({entry.filename for entry in entries}) < len(entries):
        message = f"it has more than {_MOST_ENTRIES} entries, or a name twice; pack it anew"
        yield Fault(str(path), "zip-entries", message)
        return
    for entry in entries:
        where, parts = f"{path}: {ascii(entry.filename)[:80]}", PurePosixPath(entry.filename).parts
        if (
            entry.filename.startswith(("/", "\\"))
            or ".." in parts
            or ":" in "".join(parts[:1])  # "./" has no parts
            or "\\" in entry.filename
        ):
            yield Fault(where, "zip-path", "the entry leads out of the bundle; do not trust its source")
        elif stat.S_ISLNK(entry.external_attr >> 16):
            yield Fault(where, "zip-link", "the entry is a link; pack the file itself")
        elif entry.compress_type not in _PACKED:
            # Of the others zipfile unpacks a whole block at once, however large: no size could be trusted.
            yield Fault(
                where, "zip-packing", "it is neither stored nor deflated; pack the bundle anew, as usual"
            )
        elif entry.file_size > _LARGEST_RATIO * max(entry.compress_size, 2**10):
            yield Fault(
                where, "zip-bomb", "it would grow more than two hundred times; do not trust its source"
            )
    if (total := sum(entry.file_size for entry in entries)) > free:
        yield Fault(str(path), "zip-size", f"unpacked it takes {total} bytes, and {free} are free; free some")


def _root(entries: list[zipfile.ZipInfo]) -> str:
    """The folder within the zip that the bundle is, with a slash; nothing where it is the zip itself."""
    names = [e.filename.removesuffix(METADATA) for e in entries if e.filename.endswith(METADATA)]
    roots = [name for name in names if name.count("/") <= 1 and (not name or name.endswith("/"))]
    return min(roots, key=len, default="")
