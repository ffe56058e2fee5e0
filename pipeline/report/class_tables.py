"""What a report says of classified cases: headlines, and the table, worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pipeline.inference.class_table import ClassTable
from pipeline.report.case_tables import MAX_ROWS
from pipeline.report.content import Cell, Column, Figure, Table
from pipeline.statistics import Estimate, interval_text

_HEADLINES: Final = ("auc", "sensitivity", "specificity", "balanced_accuracy", "accuracy", "ece")
_MAX_CLASSES: Final = 6  # with a column of their own


def class_figures(estimates: Mapping[str, Estimate]) -> list[Figure]:
    """The figures that matter first, with their intervals."""
    return [
        Figure(
            name.upper() if len(name) == 3 else name.replace("_", " ").capitalize(),
            f"{estimate.value:.4f}",
            f"95 %: {interval_text(estimate, '.4f')}",
        )
        for name in _HEADLINES
        if (estimate := estimates.get(name)) is not None
    ]


def class_case_table(answers: ClassTable, *, is_multi_label: bool) -> Table:
    """The table of all answers: least probability of what is true first, or if nobody knows, the least sure.

    Args:
        answers: What was said, and what is true if that is known.
        is_multi_label: Whether a case can be of several classes.
    """
    shown, truth = answers.classes[:_MAX_CLASSES], answers.truth
    columns = (
        Column("Case"),
        *((Column("Class"),) if truth is not None else ()),
        Column("Answer"),
        *((Column("Probability of the truth", 4),) if truth is not None else ()),
        *(Column(f"P({name})", 4) for name in shown),
        Column("Review"),
    )
    ranked: list[tuple[tuple[bool, float, str], tuple[Cell, ...]]] = []
    for number, case in enumerate(answers.cases):
        shares = dict(zip(answers.classes, answers.probabilities[number].tolist(), strict=True))
        is_reviewed = bool(answers.review[number])
        agreement = (
            _agreement(shares, truth[number], is_multi_label=is_multi_label) if truth is not None else None
        )
        cells: list[Cell] = [case]
        cells += ["; ".join(truth[number])] if truth is not None else []
        cells += ["; ".join(answers.predicted[number]) or None]
        cells += [agreement] if truth is not None else []
        cells += [*(shares[name] for name in shown), "yes" if is_reviewed else "no"]
        order = agreement if agreement is not None else max(shares.values())
        ranked.append(((truth is None and not is_reviewed, order, case), tuple(cells)))
    rows = [cells for _, cells in sorted(ranked, key=lambda item: item[0])]
    note = (
        "The cases in which what is true was thought least probable stand first; a click on a heading sorts."
        if truth is not None
        else "The cases marked for review stand first; a click on a heading sorts."
    )
    return Table("Cases", note, columns, rows[:MAX_ROWS], max(0, len(rows) - MAX_ROWS))


def _agreement(shares: Mapping[str, float], known: Sequence[str], *, is_multi_label: bool) -> float:
    """The probability given to what is true; of several labels the least."""
    if is_multi_label:
        return min(share if name in known else 1 - share for name, share in shares.items())
    return min(share for name, share in shares.items() if name in known) if known else 0.0
