"""`clinseg evaluate` with a table of classes: how well the answers agree with what is known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.class_inputs import read_references
from pipeline.data.medmnist import LABELS, split_part
from pipeline.data.npz import is_npz, list_arrays
from pipeline.discrimination import judge_classes
from pipeline.errors import ConfigError, Fault, InputError
from pipeline.files import check_output, write_text
from pipeline.inference.class_table import ClassTable, class_targets, read_class_table
from pipeline.statistics import Estimate


@dataclass(frozen=True, slots=True)
class ClassEvaluation:
    """What came of it.

    Attributes:
        figures: Over all cases that have an answer and a reference.
        num_cases: How many they are.
        num_reviewed: How many of them were marked for review.
        faults: Why cases are missing.
    """

    figures: Mapping[str, Estimate]
    num_cases: int
    num_reviewed: int
    faults: list[Fault]


def evaluate_classes(predictions: Path, references: Path, table: Path | None = None) -> ClassEvaluation:
    """Compares a table of predictions with what is known, and writes the figures if a path for them is given.

    Args:
        predictions: The `predictions.csv` of `clinseg predict`.
        references: An `.npz` with labels, a folder with a subfolder per class, or a CSV with `case,class`.
        table: CSV to write: `figure,value,low,high`.

    Raises:
        FaultError: If nothing can be compared at all.
    """
    if table is not None:
        check_output(table, (predictions, split_part(references)[0]))
    found = read_class_table(predictions)
    is_multi_label = _is_multi_label(predictions, found)
    _check_answers(found, is_multi_label=is_multi_label)
    known = read_references(references, found.classes, is_multi_label)
    _check_part(references, len(known), len(found.cases))
    common = [number for number, case in enumerate(found.cases) if case in known]
    faults = [
        *_unpaired(set(found.cases) - known.keys(), "it has a prediction and no reference"),
        *_unpaired(known.keys() - set(found.cases), "it has a reference and no prediction"),
    ]
    if not common:
        message = (
            f"no case has both; predictions are of {found.cases[0]!r} and so on, references of "
            f"{next(iter(known), 'nothing')!r}; name those of the same images"
        )
        raise ConfigError(Fault(str(references), "unpaired", message))

    def targets(names: Sequence[Sequence[str]]) -> np.ndarray:
        return class_targets(names, found.classes, is_multi_label=is_multi_label)

    figures = judge_classes(
        found.probabilities[common],
        targets([found.predicted[number] for number in common]),
        targets([known[found.cases[number]] for number in common]),
        found.classes,
        is_multi_label,
    )
    if table is not None:
        lines = [
            ",".join((name, *map(_number, (found.value, found.low, found.high)))) + "\n"
            for name, found in figures.items()
        ]
        write_text(table, "figure,value,low,high\n" + "".join(lines))
    return ClassEvaluation(figures, len(common), int(found.review[common].sum()), faults)


def _number(value: float) -> str:
    """A cell; empty for a bound that a single case leaves unknown."""
    return f"{value:.6g}" if math.isfinite(value) else ""


def _is_multi_label(predictions: Path, table: ClassTable) -> bool:
    """As the report beside the table says; without one, as the table looks."""
    try:
        report = json.loads((predictions.parent / "report.json").read_text(encoding="utf-8"))
        return bool(report["calibration"]["multi_label"])
    except (OSError, ValueError, LookupError, TypeError):
        return table.looks_multi_label


def _check_part(references: Path, num_known: int, num_answers: int) -> None:
    """The rows of every part of an `.npz` are numbered from 0, so that one would be taken for another."""
    file, part = split_part(references)
    if not is_npz(file) or part or num_known == num_answers:
        return
    if sum(name.endswith(LABELS) for name in list_arrays(file)) > 1:
        message = (
            f"no part was named, and what was taken has {num_known} labels for {num_answers} predictions; "
            f"name the part that was classified, such as {file.name}#val"
        )
        raise ConfigError(Fault(str(references), "which-part", message))


def _check_answers(table: ClassTable, *, is_multi_label: bool) -> None:
    """Where classes exclude each other, each case has one answer; a table may have been edited."""
    answers = dict(zip(table.cases, table.predicted, strict=True))
    message = (
        "its column predicted names {} of classes that exclude each other; name one, or take the case out"
    )
    faults = [
        Fault(case, "not-one-answer", message.format(len(names) or "none"))
        for case, names in answers.items()
        if len(names) != 1 and not is_multi_label
    ]
    if faults:
        raise InputError(faults)


def _unpaired(cases: set[str], message: str) -> list[Fault]:
    return [Fault(case, "unpaired", f"{message}, so it is left out") for case in sorted(cases)]
