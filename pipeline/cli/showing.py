"""What commands show on a terminal: tables, warnings, a sentence where one does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pipeline.comparison import Comparison
    from pipeline.data.dicom import Stack
    from pipeline.inference.budget import Plan
    from pipeline.inference.components import Components
    from pipeline.inference.confusion import Confusion
    from pipeline.inference.downstream import Effect, Turn
    from pipeline.inference.metric_table import CaseMetrics
    from pipeline.statistics import Estimate, Summary
    from pipeline.tracking import Delivery
    from pipeline.workflows.sweeping import SweepResult
    from pipeline.workflows.tasks.columns import Judgement

# A pipe gets whole lines; a terminal its own width. Names of files, cases and labels are shown as they are,
# also where they look like rich's markup ("[final]") or its emoji (":a:").
_AS_IT_IS: Final[dict[str, Any]] = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}
OUT = Console(width=None if sys.stdout.isatty() else 160, **_AS_IT_IS)
ERR = Console(stderr=True, width=None if sys.stderr.isatty() else 160, **_AS_IT_IS)


def plan_shower(verbose: bool) -> Callable[[str, Plan], None]:
    """Shows each case's plan, or does nothing."""

    def show(case: str, plan: Plan) -> None:
        if verbose:
            ERR.print(f"{case}: {plan}")

    return show


def show_faults(kind: str, faults: Iterable[object]) -> None:
    """A line each, on the error output."""
    for fault in faults:
        ERR.print(f"{kind}: {fault}")


def show_metrics(rows: Sequence[CaseMetrics], title: str) -> None:
    """Means of metrics per structure, with the interval of Dice."""
    if not rows:
        return
    from pipeline.inference.metric_table import summarise_structures
    from pipeline.statistics import interval_text

    table = Table("structure", "cases", title=title, title_justify="left", box=None)
    shown = ("dice", "hd95_mm", "nsd", "sensitivity", "precision")
    for metric in shown:
        table.add_column(f"{metric} (95 %)" if metric == "dice" else metric, justify="right")
    for structure, metrics in summarise_structures(rows).items():
        dice = metrics["dice"]
        cells = [f"{metrics[m].mean:.4f}" for m in shown]
        if dice.num > 1:
            cells = [f"{cell} ± {metrics[m].deviation:.4f}" for m, cell in zip(shown, cells, strict=True)]
            cells[0] += f" ({interval_text(dice, '.4f')})"
        table.add_row(structure, str(dice.num), *cells)
    OUT.print(table)
    if len({row.case for row in rows}) > 1:
        OUT.print("Mean ± standard deviation over cases; bootstrap interval of the mean.")


def show_confusions(found: Sequence[Confusion], structures: Collection[str]) -> None:
    """What was taken for what: left and right always, the rest where it happened."""
    from pipeline.report.case_tables import confusion_table

    table = confusion_table(found, structures)
    if table is None:
        return
    digits = [column.digits for column in table.columns]
    cells = (
        [str(cell) if num is None else f"{cell:.{num}f}" for cell, num in zip(row, digits, strict=True)]
        for row in table.rows
    )
    OUT.print()
    show_table(table.heading, [column.name for column in table.columns], cells)


def show_trial(number: int, total: int, settings: Mapping[str, str]) -> None:
    """What is tried next, on the error output."""
    told = ", ".join(f"{key}={value}" for key, value in settings.items())
    ERR.print(f"trial {number + 1} of {total}: {told}")


def show_sweep(result: SweepResult) -> None:
    """All trials, the best first, and how to go on."""
    name = result.score.removeprefix("best/")
    table = Table(name, *result.winner.settings, "ending", "minutes", "run", box=None)
    for trial in sorted(result.trials, key=lambda trial: (trial.score is None, -(trial.score or 0.0))):
        score = "" if trial.score is None else f"{trial.score:.4f}"
        values = trial.settings.values()
        table.add_row(score, *values, trial.ending, f"{trial.minutes:.1f}", trial.run)
    OUT.print(table)
    OUT.print(
        "The best of many on the same validation cases looks better than it is; judge it on other cases."
    )
    OUT.print(f"The sweep {result.run} lies in {result.folder}")
    OUT.print(f"Its best config: {result.config}")
    OUT.print(f"Apply it:        clinseg {result.command} {result.winner.run} INPUT -o results")
    for delivery in result.deliveries:
        show_delivery(delivery)


def show_image_figures(figures: Mapping[str, Summary]) -> None:
    """Means of PSNR and SSIM with their intervals."""
    if not figures:
        return
    from pipeline.statistics import interval_text

    table = Table(
        "figure", "cases", "mean", "95 %", title="Against the truth", title_justify="left", box=None
    )
    for name, figure in figures.items():
        digits = 2 if name.startswith("psnr") else 4
        interval = interval_text(figure, f".{digits}f")
        table.add_row(name, str(figure.num), f"{figure.mean:.{digits}f}", interval)
    OUT.print(table)


def show_effects(effects: Mapping[str, Mapping[str, Effect]]) -> None:
    """What is measured on images before and after they were enhanced."""
    from pipeline.statistics import interval_text

    rows = [
        (
            structure,
            name,
            *(f"{summary.mean:.4f}" for summary in effect.images.values()),
            f"{effect.change.value:+.4f} ({interval_text(effect.change, '+.4f')})",
        )
        for structure, figures in effects.items()
        for name, effect in figures.items()
    ]
    images = [*next(iter(next(iter(effects.values())).values())).images] if effects else []
    show_table("Measured in each image", ("structure", "figure", *images, "enhanced - original (95 %)"), rows)


def show_turns(turns: Sequence[Turn]) -> None:
    """Structures that appear or disappear when an image is enhanced."""
    rows = [
        (turn.case, turn.structure, turn.what, *(f"{ml:.3f}" for ml in volumes))
        for turn in turns
        for volumes in [(turn.original_ml, turn.enhanced_ml, turn.reference_ml)]
    ]
    header = ("case", "structure", "when enhanced", "ml before", "after", "reference")
    show_table("Structures that appear or disappear", header, rows)


def show_judgement(judgement: Judgement) -> None:
    """What came of the validation cases, whatever the task."""
    show_metrics(judgement.rows, "Validation, on the patients' own grids")
    if judgement.unjudged:
        names = ", ".join(judgement.unjudged)
        OUT.print(f"Not judged, as no validation case labels it: {names}")
    if judgement.components is not None:
        show_components(judgement.components)
    show_figures(judgement.figures, "Validation")


def show_figures(figures: Mapping[str, Estimate], title: str) -> None:
    """Figures over all cases with their intervals."""
    if not figures:
        return
    from pipeline.statistics import interval_text

    table = Table("figure", "value", "95 %", title=title, title_justify="left", box=None)
    for name, figure in figures.items():
        table.add_row(name, f"{figure.value:.4f}", interval_text(figure, ".4f"))
    OUT.print(table)


def show_comparison(comparison: Comparison) -> None:
    """What differs between runs, and what that means."""
    from pipeline.report import comparison as told

    outcome, labels = comparison.outcome, told.run_labels(comparison)
    title = f"Runs, with {comparison.num_cases} validation cases in common"
    show_table(title, ("", "run"), zip(labels, comparison.runs, strict=True))
    show_table(
        "Settings that differ", ("setting", *labels), ((k, *v) for k, v in comparison.settings.items())
    )
    standings = (told.standing_cells(standing, comparison) for standing in outcome.standings)
    show_table("Figures (95 % over cases)", told.standing_header(comparison), standings)
    findings = [told.finding_cells(finding, comparison.arms[0].name) for finding in outcome.findings]
    show_table("Differences", told.FINDING_HEADER, findings)
    changes = (told.change_cells(change, comparison) for change in outcome.changes)
    show_table(f"Cases that changed most ({outcome.changed})", told.change_header(comparison), changes)
    for note in (f"{outcome.test} Holm's correction over all {len(findings)}.", *comparison.notes):
        OUT.print(f"- {note}")


def show_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table of plain texts; none if it has no rows."""
    table = Table(*header, title=title, title_justify="left", box=None)
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        OUT.print(table)
        OUT.print()


def show_series(stacks: Sequence[Stack]) -> None:
    """A line for every series, or for every stack of a series that holds several."""
    table = Table("series", "number", "modality", "description", box=None)
    for name in ("slices", "size", "spacing [mm]"):
        table.add_column(name, justify="right")
    table.add_column("why it is no volume", overflow="fold")
    for stack in stacks:
        size, spacing = "", ""
        if stack.frames:
            size = " x ".join(map(str, stack.frames[0].size))
            steps = (*stack.frames[0].spacing, *([] if stack.step is None else [stack.step]))
            spacing = " x ".join(f"{mm:.2f}" for mm in steps)
        described = ", ".join(part for part in (stack.description, stack.distinction) if part)
        told = "; ".join(message for _, message in stack.problems)
        cells = (stack.id, stack.number, stack.modality, described)
        table.add_row(*cells, str(len(stack.frames)), size, spacing, told)
    OUT.print(table)


def show_components(components: Components) -> None:
    """What a cross-validation decided about largest components."""
    if not components.kept:
        OUT.print("Keeping only largest components would not raise Dice: the ensemble keeps all components.")
    for name in components.kept:
        before, after = components.before[name], components.after[name]
        OUT.print(
            f"The ensemble keeps only the largest component of {name}: Dice {before:.4f} as above, "
            f"{after:.4f} with it",
        )


def show_delivery(delivery: Delivery) -> None:
    """Warns of what MLflow does not have."""
    for refused in delivery.refused:
        ERR.print(f"warning: MLflow refused {refused}")
    if delivery.undelivered:
        ERR.print(
            f"warning: {delivery.undelivered} events are on this disk only ({delivery.problem}); "
            f"deliver them later with: clinseg sync {delivery.run}",
        )
