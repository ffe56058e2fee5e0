"""The page of a comparison: what differs, which figures, what the tests say, and the cases that changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.comparison import Change, Comparison, Finding, Standing, tell
from pipeline.report.page import as_data_url, write_page


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture of all cases.

    Attributes:
        title: Heading.
        path: The PNG.
        caption: How to read it.
    """

    title: str
    path: Path
    caption: str


@dataclass(frozen=True, slots=True)
class CaseView:
    """A case that changed, and what can be shown of it.

    Attributes:
        change: What became of it.
        pictures: A PNG for each arm, by its name; possibly none.
        trouble: Why there is none.
    """

    change: Change
    pictures: Mapping[str, Path]
    trouble: str | None


def write_comparison(
    path: Path, comparison: Comparison, charts: Sequence[Chart], views: Sequence[CaseView]
) -> None:
    """Writes a comparison as one HTML file that opens offline and holds no script.

    Raises:
        ResourceError: If the file cannot be written.
    """
    outcome, first = comparison.outcome, comparison.arms[0].name
    labels = run_labels(comparison)
    write_page(
        path,
        "comparison.html",
        scripts=(),
        context={
            "comparison": comparison,
            "first": first,
            "others": [arm.name for arm in comparison.arms[1:]],
            "labels": labels,
            "runs": list(zip(labels, comparison.runs, strict=True)),
            "settings": [[key, *values] for key, values in comparison.settings.items()],
            "finding_header": FINDING_HEADER,
            "findings": [finding_cells(finding, first) for finding in outcome.findings],
            "kinds": [_kind(finding) for finding in outcome.findings],
            "standing_header": standing_header(comparison),
            "standings": [standing_cells(standing, comparison) for standing in outcome.standings],
            "charts": charts,
            "change_header": change_header(comparison),
            "changes": [change_cells(change, comparison) for change in outcome.changes],
            "views": views,
            "caption": lambda change, name: _caption(comparison, change, name),
            "as_data_url": as_data_url,
        },
    )


def standing_cells(standing: Standing, comparison: Comparison) -> list[str]:
    """Figure, the value of each run with its interval, and the spread between the seeds of each arm."""
    figure = standing.figure
    cells = [str(figure)]
    for run in comparison.runs:
        value = standing.runs[run]
        cells.append(f"{figure.show(value.value)} ({figure.show_interval(value)})")
    cells += [
        figure.show(standing.spread[arm.name]) for arm in comparison.arms if arm.name in standing.spread
    ]
    return cells


def standing_header(comparison: Comparison) -> list[str]:
    """Names of the columns of `standing_cells`."""
    spreads = [f"{arm.name}: deviation between seeds" for arm in comparison.arms if len(arm.runs) > 1]
    return ["figure", *run_labels(comparison), *spreads]


def run_labels(comparison: Comparison) -> list[str]:
    """A short name for each run: its arm's letter, with a number where the arm has several."""
    return [
        arm.name + (str(number) if len(arm.runs) > 1 else "")
        for arm in comparison.arms
        for number in range(1, len(arm.runs) + 1)
    ]


def finding_cells(finding: Finding, first: str) -> list[str]:
    """Figure, who against whom, the difference with its interval, p and corrected p, and what that means."""
    figure, d = finding.figure, finding.difference
    return [
        str(figure),
        f"{finding.arm} − {first}",
        f"{figure.show(d.value, signed=True)} ({figure.show_interval(d, signed=True)})",
        show_p(d.p),
        show_p(finding.adjusted),
        tell(finding),
    ]


def change_header(comparison: Comparison) -> tuple[str, ...]:
    """Names of the columns of `change_cells`."""
    return ("case", "arms", comparison.arms[0].name, "other", "change")


def change_cells(change: Change, comparison: Comparison) -> list[str]:
    """Case, who against whom, both values and their difference."""
    figure, first = comparison.outcome.changed, comparison.arms[0].name
    return [
        change.case,
        f"{change.arm} − {first}",
        figure.show(change.before),
        figure.show(change.after),
        figure.show(change.after - change.before, signed=True),
    ]


FINDING_HEADER = ("figure", "arms", "difference (95 %)", "p", "p, Holm", "in words")


def show_p(p: float) -> str:
    """A probability with as many digits as it is worth."""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def _kind(finding: Finding) -> str:
    """How its row is marked: only what neither chance nor seeds may explain."""
    if not finding.is_shown or finding.may_be_seeds:
        return ""
    return "better" if finding.is_better else "worse"


def _caption(comparison: Comparison, change: Change, name: str) -> str:
    """Whose picture it is; of an arm with several runs its first run's."""
    value = comparison.outcome.changed.show(change.after if name == change.arm else change.before)
    several = any(arm.name == name and len(arm.runs) > 1 for arm in comparison.arms)
    return f"{name}1; the mean of {name} is {value}" if several else f"{name}: {value}"
