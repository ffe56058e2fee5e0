"""The table of a classifier's answers: `case,predicted,probability_<class>…,review`, a row per case."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, Fault, InputError
from pipeline.files import write_text
from pipeline.inference.classifier import ClassReport

_PROBABILITY = "probability_"
_SEVERAL = ";"
_ROUNDING = 1e-3


@dataclass(frozen=True, eq=False)
class ClassTable:
    """What a table holds.

    Attributes:
        classes: In the order of its columns.
        cases: Ids.
        predicted: Names of the classes of each case.
        probabilities: `(N, K)`.
        review: `(N,)`, whether a person should look.
        truth: Names of the classes that each case is of; None if the table does not tell.
    """

    classes: tuple[str, ...]
    cases: tuple[str, ...]
    predicted: tuple[tuple[str, ...], ...]
    probabilities: NDArray[np.float64]
    review: NDArray[np.bool_]
    truth: tuple[tuple[str, ...], ...] | None = None

    @property
    def looks_multi_label(self) -> bool:
        """Whether classes cannot exclude each other: a case has several or none, or shares make no whole."""
        is_single = all(len(names) == 1 for names in (*self.predicted, *(self.truth or ())))
        return not is_single or bool(np.abs(self.probabilities.sum(axis=1) - 1).max() > _ROUNDING)


def write_class_table(
    path: Path,
    reports: Sequence[ClassReport],
    classes: Sequence[str],
    truth: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes the cases that have an answer; with `truth` by case id, a column `class` follows the id."""
    write_text(path, class_table_text(reports, classes, truth))


def class_table_text(
    reports: Sequence[ClassReport],
    classes: Sequence[str],
    truth: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """What `write_class_table` writes."""
    file = io.StringIO(newline="")
    table = csv.writer(file, lineterminator="\n")
    known = ["class"] if truth is not None else []
    table.writerow(["case", *known, "predicted", *(f"{_PROBABILITY}{name}" for name in classes), "review"])
    for report in reports:
        if report.faults:
            continue
        told = [_SEVERAL.join(truth[report.case])] if truth is not None else []
        shares = [f"{share:.6g}" for share in report.probabilities]
        review = "yes" if report.review else "no"
        table.writerow([report.case, *told, _SEVERAL.join(report.predicted), *shares, review])
    return file.getvalue()


def read_class_table(path: Path) -> ClassTable:
    """Reads what `write_class_table` wrote.

    Raises:
        ConfigError: If it cannot be read or has other columns.
        InputError: With all rows that are wrong.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets put a mark before the text
            rows = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = "this table of predictions cannot be read; name the predictions.csv of `clinseg predict`"
        raise ConfigError(Fault(str(path), "table-unreadable", message)) from error
    header = rows[0] if rows else []
    columns = [name for name in header if name.startswith(_PROBABILITY)]
    if not columns or not {"case", "predicted", "review"} <= set(header) or len(set(header)) < len(header):
        message = (
            f"a table of predictions has the columns case, predicted, {_PROBABILITY}<class> for each class "
            f"and review, this one has {', '.join(header)[:200]!r}; name the predictions.csv of "
            "`clinseg predict`"
        )
        raise ConfigError(Fault(f"{path}:1", "table-format", message))
    classes = tuple(name.removeprefix(_PROBABILITY) for name in columns)
    faults, read = [], []
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        where, entry = f"{path}:{number}", dict(zip(header, row, strict=False))
        shares = [_share(entry.get(name, "")) for name in columns]
        predicted, known = (_names(entry.get(name, "")) for name in ("predicted", "class"))
        if len(row) != len(header) or None in shares or not {*predicted, *known} <= set(classes):
            message = "a value is missing, a probability is no number from 0 to 1, or a class is unknown"
            faults.append(Fault(where, "table-format", message))
        else:
            read.append((entry["case"], predicted, shares, entry["review"] == "yes", known))
    if len({case for case, *_ in read}) < len(read):
        faults.append(Fault(str(path), "duplicate-case", "a case stands in it twice"))
    if faults or not read:
        raise InputError(faults or [Fault(str(path), "no-cases", "it holds no prediction")])
    return ClassTable(
        classes=classes,
        cases=tuple(case for case, *_ in read),
        predicted=tuple(predicted for _, predicted, *_ in read),
        probabilities=np.array([shares for _, _, shares, *_ in read], dtype=np.float64),
        review=np.array([review for *_, review, _ in read]),
        truth=tuple(known for *_, known in read) if "class" in header else None,
    )


def class_targets(
    names: Sequence[Sequence[str]], classes: Sequence[str], *, is_multi_label: bool
) -> NDArray[np.int64] | NDArray[np.bool_]:
    """Names of classes per case as indices `(N,)`, or as `(N, K)` boolean if `is_multi_label`."""
    if is_multi_label:
        return np.array([[name in own for name in classes] for own in names], dtype=np.bool_)
    return np.array([classes.index(own[0]) for own in names], dtype=np.int64)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(_SEVERAL) if name)


def _share(text: str) -> float | None:
    try:
        share = float(text)
    except ValueError:
        return None
    return share if math.isfinite(share) and 0 <= share <= 1 else None
