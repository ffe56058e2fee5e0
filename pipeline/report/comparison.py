"""The page of a comparison: what differs, which figures, what the tests say, and the cases that changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.comparison import Change, Comparison, Finding, Standing, tell
from pipeline.report.static_page import build_page, bullets, element, number_table, picture, table


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


def comparison_page(comparison: Comparison, charts: Sequence[Chart], views: Sequence[CaseView]) -> str:
    """The HTML of a comparison; it holds its pictures and asks nothing of anybody."""
    return build_page(
        "clinseg compare",
        [
            *_heading(comparison),
            *_settings(comparison),
            *_findings(comparison),
            *_standings(comparison),
            *(part for chart in charts for part in _chart(chart)),
            *_changes(comparison, views),
        ],
    )


def standing_cells(standing: Standing, comparison: Comparison) -> list[str]:
    """Figure, the value of each run with its interval, and the spread between the seeds of each arm."""
    figure = standing.figure
    cells = [str(figure)]
    for run in comparison.runs:
        value = standing.runs[run]
        cells.append(f"{figure.show(value.value)} ({figure.show(value.low)} to {figure.show(value.high)})")
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
        f"{figure.show(d.value, signed=True)} ({figure.show(d.low, signed=True)} to "
        f"{figure.show(d.high, signed=True)})",
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


def _heading(comparison: Comparison) -> Iterator[str]:
    arms = " against ".join((comparison.arms[0].name, ", ".join(arm.name for arm in comparison.arms[1:])))
    yield element("h1", f"Comparison: {arms}")
    yield element("p", f"{comparison.num_cases} validation cases, the same for all.", "faint")
    names = zip(run_labels(comparison), comparison.runs, strict=True)
    yield table(("", "run"), names)


def _settings(comparison: Comparison) -> Iterator[str]:
    yield element("h2", "What differs in the configs")
    if comparison.settings:
        rows = ([key, *values] for key, values in comparison.settings.items())
        yield table(["setting", *run_labels(comparison)], rows)
    else:
        yield element("p", "Nothing.")


def _findings(comparison: Comparison) -> Iterator[str]:
    findings, first = comparison.outcome.findings, comparison.arms[0].name
    yield element("h2", "Is there a difference?")
    yield element(
        "p",
        f"{comparison.outcome.test} p is corrected by Holm's method over the {len(findings)} tests shown; up "
        "to 0.05 a difference is called one. No difference shown is not the same as no difference.",
        "faint",
    )
    kinds = [
        ("better" if finding.is_better else "worse") if finding.is_shown and not finding.may_be_seeds else ""
        for finding in findings
    ]
    yield number_table(FINDING_HEADER, (finding_cells(finding, first) for finding in findings), kinds)
    yield element("h3", "To keep in mind")
    yield bullets(comparison.notes)


def _standings(comparison: Comparison) -> Iterator[str]:
    yield element("h2", "Figures of each run")
    yield element("p", "With 95 % confidence intervals over cases.", "faint")
    rows = (standing_cells(standing, comparison) for standing in comparison.outcome.standings)
    yield number_table(standing_header(comparison), rows)


def _chart(chart: Chart) -> Iterator[str]:
    yield element("h2", chart.title)
    yield picture(chart.path, chart.caption)


def _changes(comparison: Comparison, views: Sequence[CaseView]) -> Iterator[str]:
    figure, first = comparison.outcome.changed, comparison.arms[0].name
    yield element("h2", f"The cases that changed most ({figure})")
    if not comparison.outcome.changes:
        yield element("p", "None changed.")
        return
    yield number_table(
        change_header(comparison),
        (change_cells(change, comparison) for change in comparison.outcome.changes),
    )
    for view in views:
        yield element("h3", f"{view.change.case}: {first} against {view.change.arm}")
        if view.trouble is not None:
            yield element("p", view.trouble, "faint")
        shown = (picture(path, _caption(comparison, view.change, arm)) for arm, path in view.pictures.items())
        yield '<div class="pair">' + "".join(shown) + "</div>"


def _caption(comparison: Comparison, change: Change, name: str) -> str:
    """Whose picture it is; of an arm with several runs its first run's."""
    value = comparison.outcome.changed.show(change.after if name == change.arm else change.before)
    several = any(arm.name == name and len(arm.runs) > 1 for arm in comparison.arms)
    return f"{name}1; the mean of {name} is {value}" if several else f"{name}: {value}"
