"""Enhancers compared: PSNR and SSIM of the same images, case by case."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.comparison import Arm, Change, Figure, Outcome, correct, find, rank_changes, stand
from pipeline.errors import Fault, InputError
from pipeline.image_metrics import IMAGE_METRICS
from pipeline.report.agreement import draw_scatter
from pipeline.report.comparison import CaseView, Chart
from pipeline.statistics import compare_means, summarise
from pipeline.workflows.comparisons.contenders import AbstractAnswers, Contender
from pipeline.workflows.tasks.enhancement_judging import TABLE

_CHANGED = "ssim"
_NUM_CHANGES = 12
_BEFORE, _AFTER = ([f"{metric}_{when}" for metric in IMAGE_METRICS] for when in ("before", "after"))
"""Columns of the tables."""
_TEST = (
    "Wilcoxon's signed-rank test of the paired values of all cases, two-sided, with the bootstrap interval "
    "of the mean difference."
)


@dataclass(frozen=True, eq=False)
class EnhancementAnswers(AbstractAnswers):
    """See `AbstractAnswers`.

    Attributes:
        cases: Ids, sorted.
        values: Per run, metric by metric one value a case.
        truths: What the images were like before; nothing where a run, which gives another unit, cannot tell.
    """

    cases: tuple[str, ...]
    values: Mapping[str, Mapping[str, NDArray[np.float64]]]
    truths: Mapping[str, Mapping[str, object]]

    def compare(self, arms: Sequence[Arm]) -> Outcome:
        """See `AbstractAnswers`."""
        standings, findings = [], []
        for metric in IMAGE_METRICS:
            estimates = {run: summarise(own[metric].tolist()).estimate for run, own in self.values.items()}
            standings.append(stand(Figure(metric), estimates, arms))
            first, *others = self._arm_means(metric, arms).values()
            for arm, other in zip(arms[1:], others, strict=True):
                difference = compare_means(first.tolist(), other.tolist())
                findings.append(find(standings[-1], (arms[0], arm), difference))
        changes = rank_changes(self.cases, self._arm_means(_CHANGED, arms), _NUM_CHANGES)
        return Outcome(tuple(standings), correct(findings), _TEST, changes, Figure(_CHANGED))

    def draw(
        self, folder: Path, arms: Sequence[Arm], changes: Sequence[Change]
    ) -> tuple[list[Chart], list[CaseView]]:
        """See `AbstractAnswers`; there are no pictures of cases."""
        charts = []
        for metric, unit in zip(IMAGE_METRICS, ("PSNR (dB)", "SSIM"), strict=True):
            path = folder / f"{metric}.png"
            draw_scatter(path, {unit: self._arm_means(metric, arms)}, {unit: list(self.cases)}, unit)
            caption = (
                "Above the line the other arm is closer to the truth. The cases that changed most are named."
            )
            charts.append(Chart(f"{unit} of every case", path, caption))
        return charts, []

    def _arm_means(self, metric: str, arms: Sequence[Arm]) -> dict[str, NDArray[np.float64]]:
        """Each case's mean over the runs of an arm."""
        return {arm.name: np.mean([self.values[run][metric] for run in arm.runs], axis=0) for arm in arms}


def read_enhancements(contenders: Sequence[Contender]) -> EnhancementAnswers:
    """Reads the tables of the runs' validation cases; those whose truth is not known are left out.

    Raises:
        InputError: If a table is damaged, or an image equals its truth, so that its PSNR has no value.
    """
    tables = {one.name: _read(one) for one in contenders}
    has_before = all(name in row for table in tables.values() for row in table.values() for name in _BEFORE)
    truths = {
        run: {case: tuple(row[name] for name in _BEFORE if has_before) for case, row in table.items()}
        for run, table in tables.items()
    }
    values = {
        run: {
            metric: np.array([float(table[case][name]) for case in sorted(table)])
            for metric, name in zip(IMAGE_METRICS, _AFTER, strict=True)
        }
        for run, table in tables.items()
    }
    return EnhancementAnswers(tuple(sorted(tables[contenders[0].name])), values, truths)


def _read(one: Contender) -> dict[str, dict[str, str]]:
    """Lines by case, of all folds of a cross-validation."""
    lines: dict[str, dict[str, str]] = {}
    for path in (part.path / TABLE for part in one.parts):
        if not path.is_file():
            continue
        with path.open(encoding="utf-8", newline="") as file:
            for number, line in enumerate(csv.DictReader(file), start=2):
                given = [name for name in _BEFORE if name in line] + list(_AFTER)
                if not any(line.get(name) for name in given):  # nothing is known of what is true
                    continue
                if not all(_is_finite(line.get(name)) for name in given):
                    message = (
                        "PSNR or SSIM is no finite number here; an image that equals its truth has no PSNR"
                    )
                    raise InputError(Fault(f"{path}:{number}", "table-format", message))
                lines[line["case"]] = line
    return lines


def _is_finite(text: str | None) -> bool:
    try:
        return text is not None and bool(np.isfinite(float(text)))
    except ValueError:
        return False
