"""Arms, their figures, and tests of every arm against the first, corrected together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.statistics import Difference, Estimate, Interval, adjust_holm, interval_text

LEVEL = 0.05
"""Adjusted p up to which a difference is called one."""
_LOWER_IS_BETTER = frozenset({"hd95_mm", "asd_mm", "brier", "ece"})


@dataclass(frozen=True, slots=True)
class Arm:
    """Trainings that are compared as one.

    Attributes:
        name: A letter.
        runs: Their names.
    """

    name: str
    runs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """What is compared.

    Attributes:
        metric: Such as `dice` or `auc`.
        subject: Structure or class that it is of; empty if it is of all.
    """

    metric: str
    subject: str = ""

    @property
    def is_lower_better(self) -> bool:
        """Whether the smaller value is the better one."""
        return self.metric in _LOWER_IS_BETTER

    def show(self, value: float, *, signed: bool = False) -> str:
        """A value with the digits that it is worth; 0.1 mm or dB is little, 0.1 Dice is a lot."""
        digits = 2 if self.metric.endswith("_mm") or self.metric == "psnr" else 4
        value = round(value, digits) + 0.0  # no -0.0000
        return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"

    def show_interval(self, found: Interval, *, signed: bool = False) -> str:
        """The ends of an interval with the same digits."""
        return interval_text(found, partial(self.show, signed=signed))

    def __str__(self) -> str:
        return f"{self.metric}/{self.subject}" if self.subject else self.metric


@dataclass(frozen=True, slots=True)
class Standing:
    """One figure of every run.

    Attributes:
        figure: What was measured.
        runs: Its value and interval by name of run.
        spread: Standard deviation between the runs of an arm, by name of the arm; only where it has several.
    """

    figure: Figure
    runs: Mapping[str, Estimate]
    spread: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Finding:
    """One test of an arm against the first.

    Attributes:
        figure: What is compared.
        arm: Name of the arm that is not the first.
        difference: Its figure minus the first arm's.
        seed_reach: How far seeds alone move that difference in 95 of 100 repetitions, by Student's t; None if
            neither arm has several.
        adjusted: The p after Holm's correction over all findings.
        num_tests: How many they are.
    """

    figure: Figure
    arm: str
    difference: Difference
    seed_reach: float | None
    adjusted: float = math.nan
    num_tests: int = 1

    @property
    def is_shown(self) -> bool:
        """Whether the cases show a difference."""
        return self.adjusted <= LEVEL

    @property
    def is_better(self) -> bool:
        """Whether the other arm's figure is the better one."""
        return (self.difference.value < 0) == self.figure.is_lower_better

    @property
    def may_be_seeds(self) -> bool:
        """Whether seeds are known to move the figure as far; False where nothing is known of them."""
        return self.seed_reach is not None and abs(self.difference.value) <= self.seed_reach


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one case.

    Attributes:
        case: Its id.
        arm: Name of the arm that is not the first.
        before: The first arm's value.
        after: The other arm's.
    """

    case: str
    arm: str
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the answers of all arms come to.

    Attributes:
        standings: Figures of the runs.
        findings: The tests, corrected together.
        test: What was tested, and how, in a sentence.
        changes: Cases by how much they changed, the most first.
        changed: The figure by which they did.
        left_out: What could not be compared.
    """

    standings: tuple[Standing, ...]
    findings: tuple[Finding, ...]
    test: str
    changes: tuple[Change, ...]
    changed: Figure
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that was found.

    Attributes:
        arms: What is compared; the first is what the others are compared with.
        num_cases: Cases that all have answered.
        settings: Settings that differ: the value of each run by dotted key, in the order of the arms' runs.
        outcome: Figures, tests and changes.
        notes: What has to be known to read it.
    """

    arms: tuple[Arm, ...]
    num_cases: int
    settings: Mapping[str, tuple[str, ...]]
    outcome: Outcome
    notes: tuple[str, ...]

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of all runs, in the order of the arms."""
        return tuple(run for arm in self.arms for run in arm.runs)


def stand(figure: Figure, runs: Mapping[str, Estimate], arms: Sequence[Arm]) -> Standing:
    """A figure of every run, and how much it varies within arms."""
    spread = {
        arm.name: float(np.std([runs[run].value for run in arm.runs], ddof=1))
        for arm in arms
        if len(arm.runs) > 1
    }
    return Standing(figure, runs, spread)


def find(standing: Standing, arms: tuple[Arm, Arm], difference: Difference) -> Finding:
    """A test of the second of two arms against the first, not yet corrected.

    Seeds are taken to spread alike in both arms, so that one with several speaks for both.
    """
    degrees = {arm.name: len(arm.runs) - 1 for arm in arms}
    num = sum(degrees.values())
    reach = None
    if num:
        squares = sum(standing.spread.get(name, 0.0) ** 2 * n for name, n in degrees.items())
        error = math.sqrt(squares / num * sum(1 / len(arm.runs) for arm in arms))
        reach = float(stats.t.ppf(0.975, num)) * error
    return Finding(standing.figure, arms[1].name, difference, reach)


def correct(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """All findings with the p that holds for them together."""
    adjusted = adjust_holm([finding.difference.p for finding in findings])
    return tuple(
        replace(finding, adjusted=p, num_tests=len(findings))
        for finding, p in zip(findings, adjusted, strict=True)
    )


def rank_changes(
    cases: Sequence[str], values: Mapping[str, NDArray[np.float64]], num: int
) -> tuple[Change, ...]:
    """The cases that changed most, against the first arm.

    Args:
        cases: Ids.
        values: One value per case, by name of the arm; the first arm first.
        num: How many at most.
    """
    (_, before), *others = values.items()
    changes = []
    for name, after in others:
        order = np.argsort(-np.abs(after - before), kind="stable")[:num]
        changes += [
            Change(cases[i], name, float(before[i]), float(after[i])) for i in order if after[i] != before[i]
        ]
    return tuple(sorted(changes, key=lambda change: -abs(change.after - change.before))[:num])
