"""Segmentations compared: metrics case by case, volumes, and the masks of cases that changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.comparison import Arm, Change, Figure, Outcome, correct, find, rank_changes, stand
from pipeline.config import load_job, segmentation_job
from pipeline.data.cases import Study, read_manifest
from pipeline.data.checks import CheckedCase, read_checked_case
from pipeline.data.images import read_label_map
from pipeline.errors import ConfigError, Fault, FaultError
from pipeline.inference.metric_table import CaseMetrics, read_table
from pipeline.labels import MEAN
from pipeline.report.agreement import Panel, draw_agreement, draw_scatter
from pipeline.report.comparison import CaseView, Chart
from pipeline.report.figures import draw_overlay
from pipeline.statistics import compare_means, summarise
from pipeline.volume import Volume
from pipeline.workflows.comparisons.contenders import AbstractAnswers, Contender
from pipeline.workflows.runs.resuming import CONFIG
from pipeline.workflows.tasks.segmentation_judging import MASKS, TABLE

METRICS = ("dice", "hd95_mm", "nsd", "sensitivity", "precision")
"""Those that are tested. IoU orders cases as Dice does, and the mean distance nearly as HD95: more tests of
the same would only weaken all of them."""
_VOLUMES = ("volume_ml", "reference_volume_ml")
_NUM_CHANGES = 8
_NUM_PICTURES = 4
_TEST = (
    "Wilcoxon's signed-rank test of the paired values of all cases, two-sided, with the bootstrap interval "
    "of the mean difference."
)

Values = Mapping[str, NDArray[np.float64]]
"""A metric's value of each case, by run or arm."""


@dataclass(frozen=True, eq=False)
class SegmentationAnswers(AbstractAnswers):
    """See `AbstractAnswers`.

    Attributes:
        contenders: The runs, by name.
        rows: Their metrics by structure and case, of the structures that all runs judge.
        left_out: Structures that only some judge.
        truths: Volume of each structure's reference.
    """

    contenders: Mapping[str, Contender]
    rows: Mapping[str, Mapping[str, Mapping[str, CaseMetrics]]]
    left_out: tuple[str, ...]
    truths: Mapping[str, Mapping[str, object]]

    def compare(self, arms: Sequence[Arm]) -> Outcome:
        """See `AbstractAnswers`."""
        structures = list(next(iter(self.rows.values())))
        subjects = [*structures, MEAN] if len(structures) > 1 else structures
        standings, findings = [], []
        for subject in subjects:
            for metric in METRICS:
                values = self._values(subject, metric)
                estimates = {run: summarise(own.tolist()).estimate for run, own in values.items()}
                standings.append(stand(Figure(metric, subject), estimates, arms))
                first, *others = _arm_means(values, arms).values()
                for arm, other in zip(arms[1:], others, strict=True):
                    difference = compare_means(first.tolist(), other.tolist())
                    findings.append(find(standings[-1], (arms[0], arm), difference))
        dice = _arm_means(self._values(subjects[-1], "dice"), arms)
        left_out = [f"{name} is not judged by all runs and left out." for name in self.left_out]
        return Outcome(
            tuple(standings),
            correct(findings),
            _TEST,
            rank_changes(self._cases(subjects[-1]), dice, _NUM_CHANGES),
            Figure("dice", subjects[-1]),
            tuple(left_out),
        )

    def draw(
        self, folder: Path, arms: Sequence[Arm], changes: Sequence[Change]
    ) -> tuple[list[Chart], list[CaseView]]:
        """See `AbstractAnswers`."""
        structures = list(next(iter(self.rows.values())))
        dice = {name: _arm_means(self._values(name, "dice"), arms) for name in structures}
        draw_scatter(folder / "scatter.png", dice, self._case_names(structures), "Dice")
        found, true = (
            {name: _arm_means(self._values(name, metric), arms) for name in structures} for metric in _VOLUMES
        )
        panels = [
            Panel(name, arm.name, found[name][arm.name], true[name][arm.name])
            for name in structures
            for arm in arms
        ]
        draw_agreement(folder / "volumes.png", panels)
        charts = [
            Chart(
                "Dice of every case",
                folder / "scatter.png",
                "Above the line the other arm is better. The cases that changed most are named.",
            ),
            Chart(
                "Volumes against the reference (Bland-Altman)",
                folder / "volumes.png",
                "Predicted minus reference volume over the mean of both, in ml; the line is the mean "
                "difference, dashed are the limits of agreement (mean ± 1.96 standard deviations).",
            ),
        ]
        return charts, self._draw_cases(folder, arms, changes[:_NUM_PICTURES])

    def _values(self, subject: str, metric: str) -> dict[str, NDArray[np.float64]]:
        """One value per case, by run; of `MEAN` a case's mean over its structures."""
        return {
            run: np.array(
                [
                    np.mean([of[case].values[metric] for of in self._judging(run, subject) if case in of])
                    for case in self._cases(subject)
                ]
            )
            for run in self.contenders
        }

    def _judging(self, run: str, subject: str) -> list[Mapping[str, CaseMetrics]]:
        return list(self.rows[run].values()) if subject == MEAN else [self.rows[run][subject]]

    def _cases(self, subject: str) -> list[str]:
        first = next(iter(self.contenders))
        return sorted({case for of in self._judging(first, subject) for case in of})

    def _case_names(self, structures: Sequence[str]) -> dict[str, list[str]]:
        return {name: self._cases(name) for name in structures}

    def _draw_cases(self, folder: Path, arms: Sequence[Arm], changes: Sequence[Change]) -> list[CaseView]:
        first = {arm.name: self.contenders[arm.runs[0]] for arm in arms}
        base, study, trouble = first[arms[0].name], None, None
        try:
            study = read_manifest(segmentation_job(load_job(base.run.path / CONFIG)).data)
        except FaultError as error:
            trouble = f"no picture: {error.faults[0]}"
        views = []
        for number, change in enumerate(changes):
            pictures: dict[str, Path] = {}
            reason = trouble
            if study is not None:
                try:
                    pair = {arms[0].name: base, change.arm: first[change.arm]}
                    pictures = _draw_pair(folder, number, study, change.case, pair)
                except FaultError as error:
                    reason = f"no picture: {error.faults[0]}"
            views.append(CaseView(change, pictures, reason))
        return views


def read_segmentations(contenders: Sequence[Contender]) -> SegmentationAnswers:
    """Reads the tables of the runs' validation cases.

    Raises:
        InputError: If a table is damaged.
        ConfigError: If there is no structure that all of them judge.
    """
    tables = {one.name: _read_rows(one) for one in contenders}
    judged = [table.keys() for table in tables.values() if table]
    names = dict.fromkeys(name for structures in judged for name in structures)
    common = [name for name in names if all(name in structures for structures in judged)]
    if judged and not common:
        message = f"no structure is judged by all runs; there are {', '.join(names)}"
        raise ConfigError(Fault(contenders[0].name, "no-common-structure", message))
    rows = {run: {name: table[name] for name in common if name in table} for run, table in tables.items()}
    truths: dict[str, dict[str, object]] = {}
    for run, table in rows.items():
        volumes: dict[str, dict[str, float]] = {}
        for name, of in table.items():
            for case, row in of.items():
                volumes.setdefault(case, {})[name] = row.values["reference_volume_ml"]
        truths[run] = dict(volumes)
    left_out = tuple(name for name in names if name not in common)
    return SegmentationAnswers({one.name: one for one in contenders}, rows, left_out, truths)


def _read_rows(one: Contender) -> dict[str, dict[str, CaseMetrics]]:
    path = one.run.path / TABLE
    rows: dict[str, dict[str, CaseMetrics]] = {}
    for row in read_table(path) if path.is_file() else ():
        rows.setdefault(row.structure, {})[row.case] = row
    return rows


def _arm_means(values: Values, arms: Sequence[Arm]) -> dict[str, NDArray[np.float64]]:
    """Each case's mean over the runs of an arm."""
    return {arm.name: np.mean([values[run] for run in arm.runs], axis=0) for arm in arms}


def _draw_pair(
    folder: Path, number: int, study: Study, case_id: str, pair: Mapping[str, Contender]
) -> dict[str, Path]:
    """Draws what two runs made of a case, in the same slices."""
    case = next((case for case in study.cases if case.id == case_id), None)
    if case is None:
        raise ConfigError(Fault(case_id, "case-gone", "the manifest does not name this case any more"))
    read: CheckedCase = read_checked_case(case, study.contract, len(study.channels))
    masks: dict[str, Volume] = {name: read_label_map(_mask_of(one, case_id)) for name, one in pair.items()}
    labelled = study.contract.labelled_structures(case.labelled, read.values)
    paths = {}
    for name, mask in masks.items():
        paths[name] = folder / f"case-{number}-{name}.png"
        draw_overlay(
            paths[name],
            image=read.images[0],
            prediction=mask,
            reference=read.label,
            labels=study.labels,
            title=f"{name}: {case_id}",
            unlabelled={
                value
                for structure, values in study.contract.structures.items()
                if structure not in labelled
                for value in values
            },
            ignore_value=study.contract.ignore_value,
            colours=study.contract.colours,
            beside=[other for other in masks.values() if other is not mask],
        )
    return paths


def _mask_of(one: Contender, case: str) -> Path:
    """The run's own mask of a case, or that of the fold that held it out."""
    paths = [part.path / MASKS / f"{case}.nii.gz" for part in one.parts]
    return next((path for path in paths if path.is_file()), paths[0])
