"""Text files that list things: read whole and bounded, a CSV by its columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ConfigError, Fault

_MAX_BYTES = 2**24


@dataclass
class Table:
    """A CSV with a header.

    Attributes:
        columns: Their names, each once.
        rows: Place in the file, and value by column; blanks round a value are dropped.
        faults: Of rows that have too many or too few values, which are left out.
    """

    columns: tuple[str, ...]
    rows: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def read_text(path: Path, forms: str) -> str:
    """Reads a manifest of at most 16 MiB; `forms` says what could stand in its place.

    Raises:
        ConfigError: If it cannot be read, is larger, or is not UTF-8.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"byte {error.start} is not UTF-8; save the manifest with that encoding"
        raise ConfigError(Fault(where, "manifest-encoding", message)) from error
    except OSError as error:
        reason = (error.strerror or "error").lower()
        message = f"it cannot be read ({reason}); give {forms}"
        raise ConfigError(Fault(where, "manifest-unreadable", message)) from error
    if len(data) > _MAX_BYTES:
        message = f"a manifest has at most {_MAX_BYTES // 2**20} MiB; is this the right file?"
        raise ConfigError(Fault(where, "manifest-too-large", message))
    return text


def parse_table(path: Path, text: str, is_complete: Callable[[list[str]], bool], needed: str) -> Table:
    """Parses a CSV.

    Args:
        path: Where the text stands, for messages.
        text: The whole file.
        is_complete: Whether these columns suffice.
        needed: The columns there must or may be, in words.

    Raises:
        ConfigError: If it is no CSV, or its columns are doubled or do not suffice.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not is_complete(header) or len(set(header)) != len(header):
            message = (
                f"the first line must name comma-separated columns, each once: {needed}; it names "
                f"{', '.join(header)[:200]!r}"
            )
            raise ConfigError(Fault(f"{path}:1", "manifest-format", message))
        table = Table(tuple(header))
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if row and len(row) != len(header):
                message = f"{len(header)} values are needed, as in the first line, not {len(row)}"
                table.faults.append(Fault(where, "manifest-format", message))
            elif row:
                table.rows.append((where, dict(zip(header, map(str.strip, row), strict=True))))
    except csv.Error as error:
        message = f"no valid CSV: {error}"
        raise ConfigError(Fault(f"{path}:{reader.line_num}", "manifest-syntax", message)) from error
    return table


def split_names(value: str) -> tuple[str, ...]:
    """The names in a cell, separated by `;`; none in an empty one."""
    return tuple(name.strip() for name in value.split(";")) if value else ()
