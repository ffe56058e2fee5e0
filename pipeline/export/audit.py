"""The log of what was made of what: a line for each case, each chained to the line before by its hash.

Whoever changes, removes or moves a line breaks the chain at that place. Lines cut off at the end leave a
chain that is whole, so the hash of the last line (the *head*) is kept apart: in `report.json`, and wherever
people note it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import IO, Any, Final

from pipeline.errors import ConfigError, Fault, IntegrityError
from pipeline.files import resource_error, sha256_of

NAME: Final = "audit.jsonl"
FIRST: Final = "0" * 64
"""What stands for the line before the first."""
_TAIL = 2**20  # bytes at the end of a file in which its last line is looked for


@dataclass(frozen=True, slots=True)
class Audit:
    """A log that is whole.

    Attributes:
        num_entries: Lines.
        head: Hash of the last one.
        num_outputs: Files that it tells of and that are there.
        missing: Files that it tells of and that are not there.
    """

    num_entries: int
    head: str
    num_outputs: int
    missing: tuple[str, ...]


def append_entry(path: Path, entry: Mapping[str, Any]) -> str:
    """Adds a line, with the time and its place in the chain; it is on disk when this returns.

    Args:
        path: The log; made if it is not there.
        entry: JSON-able; without `time`, `previous` and `hash`.

    Returns:
        The new head.

    Raises:
        ConfigError: If the log does not end with a line of a chain.
        ResourceError: If it cannot be written; the log is then as it was before.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:  # a buffer would be written once more when it closes
            fcntl.flock(file, fcntl.LOCK_EX)  # of two predictions into one folder
            line = {
                "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
                **entry,
                "previous": _head(path, file),
            }
            line["hash"] = _hash_of(line)
            _append(file, json.dumps(line, ensure_ascii=False).encode() + b"\n")
            return str(line["hash"])
    except OSError as error:
        raise resource_error(path, error) from error


def read_head(path: Path) -> str:
    """The hash of the last line; `FIRST` where there is no log yet.

    Raises:
        ConfigError: If the log does not end with a line of a chain.
    """
    if not path.is_file():
        return FIRST
    with path.open("rb") as file:
        return _head(path, file)


def logged_outputs(path: Path) -> dict[str, set[str]]:
    """Every SHA-256 that each file ever had when it was written, by its path in the folder.

    Args:
        path: The log; none tells of no file. Lines that cannot be read tell nothing here.
    """
    found: dict[str, set[str]] = {}
    if path.is_file():
        for line in path.read_bytes().split(b"\n"):
            outputs = (_parse(line) or {}).get("outputs")
            for name, known in (outputs if isinstance(outputs, dict) else {}).items():
                found.setdefault(name, set()).add(str(known))
    return found


def verify(path: Path, head: str | None = None) -> Audit:
    """Reads a log to its end and compares it with itself, with a known head and with the files beside it.

    Args:
        path: The log.
        head: What its last line once hashed to; more may have come since. None takes the `audit_head` of a
            `report.json` beside it.

    Raises:
        ConfigError: If it cannot be read.
        IntegrityError: With every line that is not what was written, and every file that changed since.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        message = f"the log cannot be read ({(error.strerror or 'error').lower()}); name an {NAME}"
        raise ConfigError(Fault(str(path), "unreadable", message)) from error
    faults: list[Fault] = []
    if lines.pop():
        faults.append(Fault(f"{path}:{len(lines) + 1}", "line-cut", "the last line is not complete"))
    previous, heads, outputs = FIRST, {FIRST}, dict[str, str]()
    for number, line in enumerate(lines, start=1):
        entry = _parse(line)
        told = list(_line_faults(f"{path}:{number}", entry, previous))
        faults += told
        if entry is not None:
            previous = str(entry.get("hash"))
            heads.add(previous)
            outputs |= {} if told else entry.get("outputs") or {}
    known_head = head or _reported_head(path)
    if known_head is not None and known_head not in heads:
        message = f"no line has the hash {known_head[:16]}…, as the last one once had: lines are gone"
        faults.append(Fault(str(path), "other-head", message))
    missing = [name for name in outputs if not (path.parent / name).is_file()]
    faults += _changed(path.parent, {name: outputs[name] for name in outputs if name not in missing})
    if faults:
        raise IntegrityError(faults)
    return Audit(len(lines), previous, len(outputs) - len(missing), tuple(missing))


def _append(file: FileIO, line: bytes) -> None:
    """Adds a line as a whole or not at all: behind half of one, left by a full disk, none could follow."""
    size = os.fstat(file.fileno()).st_size  # nobody else changes it while we hold the lock
    try:
        left = memoryview(line)
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    except BaseException:  # a signal too
        with suppress(OSError):  # what ended the writing says more
            os.ftruncate(file.fileno(), size)
            os.fsync(file.fileno())
        raise


def _head(path: Path, file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return FIRST
    file.seek(max(0, size - _TAIL))
    tail = file.read()
    entry = _parse(tail.rstrip(b"\n").rpartition(b"\n")[2]) if tail.endswith(b"\n") else None
    if entry is None or entry.get("hash") != _hash_of(entry):
        message = (
            "the log does not end with a line of its chain; look at it with `clinseg audit verify`, then "
            "move it aside or choose another folder"
        )
        raise ConfigError(Fault(str(path), "audit-broken", message))
    return str(entry["hash"])


def _hash_of(entry: Mapping[str, Any]) -> str:
    content = {name: value for name, value in entry.items() if name != "hash"}
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _line_faults(where: str, entry: dict[str, Any] | None, previous: str) -> Iterator[Fault]:
    if entry is None:
        yield Fault(where, "line-unreadable", "it is no entry; it was changed or damaged")
        return
    if entry.get("hash") != _hash_of(entry):
        yield Fault(where, "line-changed", "it is not what was written: its hash differs")
    if entry.get("previous") != previous:
        message = "it does not follow the line before: one was removed, added or moved"
        yield Fault(where, "chain-broken", message)


def _reported_head(path: Path) -> str | None:
    try:
        report = json.loads((path.parent / "report.json").read_text(encoding="utf-8"))
        return str(report["audit_head"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _changed(folder: Path, outputs: Mapping[str, str]) -> Iterator[Fault]:
    for name, known in outputs.items():
        if sha256_of(folder / name) != known:
            message = "the file is not the one that was written; restore it, or predict again"
            yield Fault(str(folder / name), "output-changed", message)
