"""Classifiers compared: areas under curves, right answers at their operating points, cases that turned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.comparison import Arm, Change, Figure, Finding, Outcome, correct, find, rank_changes, stand
from pipeline.discrimination import compare_auc, judge_classes
from pipeline.errors import ConfigError, Fault
from pipeline.inference.class_table import ClassTable, class_targets, read_class_table
from pipeline.reliability import truth_table
from pipeline.report.agreement import draw_scatter
from pipeline.report.comparison import CaseView, Chart
from pipeline.statistics import Difference, Estimate, compare_means, compare_shares
from pipeline.workflows.comparisons.contenders import AbstractAnswers, Contender
from pipeline.workflows.tasks.classification_judging import TABLE

_NUM_CHANGES = 12
_CHANGED = Figure("probability of what is true")
_TEST = (
    "AUC by DeLong's test of paired curves; right answers (at the threshold of each run) by McNemar's exact "
    "test, or by Wilcoxon's of the share of seeds that are right where an arm has several."
)


@dataclass(frozen=True, eq=False)
class ClassAnswers(AbstractAnswers):
    """See `AbstractAnswers`.

    Attributes:
        tables: What each run answered, its cases sorted by id.
        multi_label: Whether a case can be of several classes.
        truths: Classes.
    """

    tables: Mapping[str, ClassTable]
    multi_label: bool
    truths: Mapping[str, Mapping[str, object]]

    def compare(self, arms: Sequence[Arm]) -> Outcome:
        """See `AbstractAnswers`."""
        judged = {run: self._judge(run) for run in self.tables}
        first = next(iter(judged.values()))
        standings = {
            name: stand(_figure(name), {run: own[name] for run, own in judged.items()}, arms)
            for name in first
            if all(name in own for own in judged.values())
        }
        findings: list[Finding] = []
        for arm in arms[1:]:
            pair = arms[0], arm
            for name, difference in self._differences(*pair).items():
                if name in standings:
                    findings.append(find(standings[name], pair, difference))
        return Outcome(
            tuple(standings.values()),
            correct(findings),
            _TEST,
            rank_changes(self._first.cases, self._true_shares(arms), _NUM_CHANGES),
            _CHANGED,
        )

    def draw(
        self, folder: Path, arms: Sequence[Arm], changes: Sequence[Change]
    ) -> tuple[list[Chart], list[CaseView]]:
        """See `AbstractAnswers`; there are no pictures of cases."""
        shares, truth = self._true_shares(arms), self._truth
        series, cases = {}, {}
        for k, name in enumerate(self._first.classes):
            if not self.multi_label and truth[:, k].any():
                members = np.flatnonzero(truth[:, k])
                series[name] = {arm: values[members] for arm, values in shares.items()}
                cases[name] = [self._first.cases[i] for i in members]
        if self.multi_label:
            series, cases = {"least sure label": shares}, {"least sure label": list(self._first.cases)}
        draw_scatter(folder / "scatter.png", series, cases, "Probability of what is true")
        caption = (
            "Above the line the other arm is surer of what is true. The cases that changed most are named."
        )
        return [Chart("Probability of what is true, every case", folder / "scatter.png", caption)], []

    @property
    def _first(self) -> ClassTable:
        return next(iter(self.tables.values()))

    @property
    def _truth(self) -> NDArray[np.bool_]:
        return truth_table(self._targets(self._first.truth or ()), len(self._first.classes), self.multi_label)

    def _targets(self, names: Sequence[Sequence[str]]) -> NDArray[np.int64] | NDArray[np.bool_]:
        return class_targets(names, self._first.classes, is_multi_label=self.multi_label)

    def _answers(self, run: str) -> NDArray[np.bool_]:
        """Which classes each case was said to be of, `(N, K)`."""
        predicted = self._targets(self.tables[run].predicted)
        return truth_table(predicted, len(self._first.classes), self.multi_label)

    def _judge(self, run: str) -> dict[str, Estimate]:
        table = self.tables[run]
        predictions, targets = self._targets(table.predicted), self._targets(table.truth or ())
        return judge_classes(table.probabilities, predictions, targets, table.classes, self.multi_label)

    def _differences(self, first: Arm, other: Arm) -> dict[str, Difference]:
        """Tested figures, named as `judge_classes` names them."""
        truth, classes = self._truth, self._first.classes
        is_binary = len(classes) == 2 and not self.multi_label
        asked = [1] if is_binary else list(range(len(classes)))
        scores = [np.stack([self.tables[run].probabilities for run in arm.runs]) for arm in (first, other)]
        columns = {"auc": asked}
        if not is_binary:
            columns |= {f"auc/{classes[k]}": [k] for k in asked}
        areas = {
            name: compare_auc(scores[0][:, :, ks], scores[1][:, :, ks], truth[:, ks])
            for name, ks in columns.items()
        }
        found = {name: difference for name, difference in areas.items() if difference is not None}
        return {**found, "accuracy": self._compare_right(first, other)}

    def _compare_right(self, first: Arm, other: Arm) -> Difference:
        right = [
            np.array([(self._answers(run) == self._truth).mean(axis=1) for run in arm.runs])
            for arm in (first, other)
        ]
        if not self.multi_label:  # a case is right or wrong
            right = [(shares == 1).astype(np.float64) for shares in right]
            if len(first.runs) == len(other.runs) == 1:
                return compare_shares((right[0][0] == 1).tolist(), (right[1][0] == 1).tolist())
        return compare_means(right[0].mean(axis=0).tolist(), right[1].mean(axis=0).tolist())

    def _true_shares(self, arms: Sequence[Arm]) -> dict[str, NDArray[np.float64]]:
        """The probability given to what is true, of several labels the least; the mean over an arm's runs."""
        truth = self._truth
        shares = {}
        for arm in arms:
            each = np.stack([self.tables[run].probabilities for run in arm.runs])
            of_truth = np.where(truth, each, 1 - each if self.multi_label else np.inf)
            shares[arm.name] = of_truth.min(axis=2).mean(axis=0)
        return shares


def read_classifications(contenders: Sequence[Contender]) -> ClassAnswers:
    """Reads the tables of the runs' validation cases.

    Raises:
        InputError: If a table is damaged.
        ConfigError: If the runs know other classes.
    """
    tables: dict[str, ClassTable] = {}
    truths: dict[str, dict[str, object]] = {}
    for one in contenders:
        path, truths[one.name] = one.run.path / TABLE, {}
        if path.is_file():
            table = tables[one.name] = _sorted(read_class_table(path))
            truths[one.name] = dict(zip(table.cases, table.truth or (), strict=True))
    kinds = {name: (table.classes, _is_multi_label(one)) for name, table, one in _with(contenders, tables)}
    faults = [
        Fault(name, "other-classes", f"it tells {_told(kind)}, and {next(iter(kinds))} {_told(known)}")
        for name, kind in kinds.items()
        if kind != (known := next(iter(kinds.values())))
    ]
    if faults:
        raise ConfigError(faults)
    return ClassAnswers(tables, _is_multi_label(contenders[0]), truths)


def _with(
    contenders: Sequence[Contender], tables: Mapping[str, ClassTable]
) -> list[tuple[str, ClassTable, Contender]]:
    return [(one.name, tables[one.name], one) for one in contenders if one.name in tables]


def _told(kind: tuple[tuple[str, ...], bool]) -> str:
    return ", ".join(kind[0]) + (" (several at once)" if kind[1] else "")


def _is_multi_label(one: Contender) -> bool:
    return one.settings.get("data.multi_label") == "true"


def _sorted(table: ClassTable) -> ClassTable:
    """The same with the cases in the order of their ids."""
    order = sorted(range(len(table.cases)), key=table.cases.__getitem__)
    return ClassTable(
        table.classes,
        tuple(table.cases[i] for i in order),
        tuple(table.predicted[i] for i in order),
        table.probabilities[order],
        table.review[order],
        None if table.truth is None else tuple(table.truth[i] for i in order),
    )


def _figure(name: str) -> Figure:
    metric, _, subject = name.partition("/")
    return Figure(metric, subject)
