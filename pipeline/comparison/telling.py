"""Findings in plain words: what is a difference, what is none, and what these runs cannot tell."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.comparison.findings import LEVEL, Arm, Finding

_FEW_CASES = 20
_FEW_SEEDS = 3


def tell(finding: Finding) -> str:
    """What a finding says and what it does not."""
    figure, d = finding.figure, finding.difference
    if not d.num_changed:
        return f"The same in all {d.num} cases."
    reach = figure.show_interval(d, signed=True)
    if finding.is_shown and d.low <= 0 <= d.high:
        return (
            f"A difference in most cases, but not for certain in the mean ({reach}): a few large changes "
            "outweigh or undo many small ones."
        )
    if finding.is_shown:
        return _tell_shown(finding)
    if d.least_p * finding.num_tests > LEVEL:
        return (
            f"Cannot be told: only {d.num_changed} cases changed, too few for {finding.num_tests} tests, "
            f"whatever they show; one of {reach} fits."
        )
    return f"No difference is shown; one of {reach} fits these cases as well."


def remarks(arms: Sequence[Arm], num_cases: int) -> tuple[str, ...]:
    """What trainings and cases cannot tell, whatever the figures."""
    notes = [
        f"{arm.name} is {len(arm.runs)} runs that differ in nothing but the seed: each case counts with its "
        "mean over them."
        for arm in arms
        if len(arm.runs) > 1
    ]
    if 0 < sum(len(arm.runs) - 1 for arm in arms) < _FEW_SEEDS:
        notes.append(
            "So few seeds hardly tell how far apart seeds are, so that nearly everything may be explained by "
            "them; three or more of each arm tell more."
        )
    if single := [arm.name for arm in arms if len(arm.runs) == 1]:
        notes.append(
            f"A single training each: {', '.join(single)}. The tests ask whether other cases would show a "
            "difference again, not whether other seeds would; train several seeds and name all their runs."
        )
    if num_cases < _FEW_CASES:
        notes.append(
            f"{num_cases} cases are few: intervals come out too narrow, and only large differences show."
        )
    return tuple(notes)


def _tell_shown(finding: Finding) -> str:
    figure = finding.figure
    side = "better" if finding.is_better else "worse"
    found = f"{finding.arm} is {side} by {figure.show(abs(finding.difference.value))}"
    if finding.seed_reach is None:
        return f"A difference: {found}."
    reach = figure.show(finding.seed_reach)
    if finding.may_be_seeds:
        return (
            f"These runs differ, {found}; but seeds alone explain up to {reach}, so that what was changed is "
            "not shown to matter."
        )
    return f"A difference: {found}, more than the spread between seeds explains ({reach})."
