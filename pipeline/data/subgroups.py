"""What group each case is of, by columns of a CSV manifest that a job names; nothing else of it is read.

Only groups leave, never numbers or free text: of a numeric column the quarter of the cases that a case is in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.data.tables import parse_table, read_text
from pipeline.errors import ConfigError, Fault

NOT_SAID: Final = "not said"
"""The group of a case whose cell is empty."""
_RESERVED: Final = ("case", "patient", "label", "labelled", "class", "fold")
_MOST_GROUPS, _LONGEST, _FEW_NUMBERS = 12, 32, 6

Groups = dict[str, dict[str, str]]
"""Column → case → group."""


def read_subgroups(manifest: Path, columns: Sequence[str]) -> Groups:
    """Reads the columns that a job names.

    A column of numbers with more than six different ones is divided into quarters of its cases.

    Raises:
        ConfigError: If the manifest is no CSV, has no such column, or a column may hold no groups: it has too
            many values, or long ones, as names and notes are.
    """
    if not columns:
        return {}
    if manifest.suffix.lower() != ".csv":
        message = (
            "subgroups are columns of a CSV, and this manifest is none; leave them out (`subgroups: []`)"
        )
        raise ConfigError(Fault(str(manifest), "no-subgroups", message))
    table = parse_table(manifest, read_text(manifest, "a CSV"), lambda names: "case" in names, "case")
    faults = [fault for name in columns for fault in _column_faults(manifest, name, table.columns)]
    if faults:
        raise ConfigError(faults)
    cells = {name: {row["case"]: row[name] for _, row in table.rows} for name in columns}
    found = {name: _group(of_case) for name, of_case in cells.items()}
    faults = [fault for name in columns for fault in _group_faults(manifest, name, found[name])]
    if faults:
        raise ConfigError(faults)
    return found


def _column_faults(manifest: Path, name: str, there: Sequence[str]) -> Iterator[Fault]:
    if name not in there:
        free = [one for one in there if one not in _RESERVED and not one.startswith("image")]
        message = f"there is no column {name[:40]!r}; there are {', '.join(free)[:200] or 'none'}"
        yield Fault(f"{manifest}:1", "no-subgroups", message)
    elif name in _RESERVED or name.startswith("image"):
        yield Fault(
            f"{manifest}:1", "no-subgroups", f"the column {name!r} is no group of patients; name another"
        )


def _group_faults(manifest: Path, name: str, of_case: dict[str, str]) -> Iterator[Fault]:
    groups = set(of_case.values())
    if len(groups) > _MOST_GROUPS or any(len(g) > _LONGEST or not g.isprintable() for g in groups):
        message = (
            f"the column {name!r} holds more than {_MOST_GROUPS} values or long ones, as names and notes do, "
            "and groups go with the model; name a column of a few short words, or of numbers"
        )
        yield Fault(str(manifest), "no-subgroups", message)


def _group(of_case: dict[str, str]) -> dict[str, str]:
    numbers = {case: _number(cell) for case, cell in of_case.items() if cell}
    values = [value for value in numbers.values() if value is not None]
    if len(values) < len(numbers) or len(set(values)) <= _FEW_NUMBERS:
        return {case: cell or NOT_SAID for case, cell in of_case.items()}
    bounds = [float(bound) for bound in np.quantile(values, (0.25, 0.5, 0.75))]
    # As many digits as tell them apart: groups of one name would be one group.
    written = ([f"{bound:.{digits}g}" for bound in bounds] for digits in range(4, 18))
    low, middle, high = next(found for found in written if len(set(found)) == len(set(bounds)))
    names = (f"up to {low}", f"{low} to {middle}", f"{middle} to {high}", f"above {high}")
    return {
        case: NOT_SAID
        if (value := numbers.get(case)) is None
        else names[int(np.searchsorted(bounds, value, side="left"))]
        for case in of_case
    }


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
