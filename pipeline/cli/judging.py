"""What tells how good something is: evaluate, compare, report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app
from pipeline.cli.showing import (
    ERR,
    OUT,
    show_comparison,
    show_confusions,
    show_effects,
    show_faults,
    show_figures,
    show_metrics,
    show_turns,
)
from pipeline.errors import ConfigError, Fault, InputError

_PANEL = "Judge them"


@app.command(rich_help_panel=_PANEL)
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of label maps, or one; or predictions.csv.")],
    references: Annotated[
        Path, typer.Argument(help="What is true; of classes an .npz, folder or CSV; of images the true ones.")
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="CSV to write.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="SegmentationJob whose word counts on what is labelled in each case.")
    ] = None,
    ignore: Annotated[
        int | None, typer.Option(min=1, help="Value of the references' voxels to leave out.")
    ] = None,
    downstream: Annotated[
        str | None,
        typer.Option(help="Segmentation model; PREDICTIONS are enhanced images, REFERENCES true ones."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="With --downstream: label maps that its masks are held against.")
    ] = None,
) -> None:
    """Compare predictions with references, or what is measured on enhanced images with what should be."""
    if downstream is not None or labels is not None:
        others = {"--output": output, "--config": config, "--ignore": ignore}
        _evaluate_downstream(predictions, references, downstream, labels, others)
        return
    if predictions.suffix == ".csv":
        _refuse({"--config": config, "--ignore": ignore}, "classes, which have no voxels")
        _evaluate_classes(predictions, references, output)
        return
    from pipeline.workflows.evaluation import evaluate as run_evaluation

    evaluation = run_evaluation(predictions, references, output, config, ignore)
    show_metrics(evaluation.rows, "Predictions against references")
    show_confusions(evaluation.confusions, {row.structure for row in evaluation.rows})
    show_faults("warning", evaluation.warnings)
    if evaluation.faults:
        raise InputError(evaluation.faults)


@app.command(rich_help_panel=_PANEL)
def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Runs or `latest`; the others are compared with the first.")
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="HTML page to write.")] = None,
) -> None:
    """Tell whether one run is better than another, where, and whether the difference is real."""
    from pipeline.workflows.comparing import compare as run_comparison

    show_comparison(run_comparison(runs, output))
    if output is not None:
        OUT.print(f"With charts and pictures of the cases that changed most: {output}")


@app.command(rich_help_panel=_PANEL)
def report(
    source: Annotated[str, typer.Argument(help="Run, `latest`, or a folder of predictions.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="HTML to write.")] = None,
    cases: Annotated[
        str | None, typer.Option(help="Ids of the cases to look at, a,b,…; else worst, median and best.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option(help="Where the images are, if it is not a run's own data.")
    ] = None,
    references: Annotated[Path | None, typer.Option(help="Folder of reference label maps.")] = None,
) -> None:
    """Write one HTML file about a run or predictions, with cases to look at in 3D; it opens offline."""
    from pipeline.workflows.reporting import report as run_report

    wanted = [case.strip() for case in cases.split(",")] if cases is not None else []
    path = run_report(source, output, wanted, images or [], references)
    OUT.print(f"{path} is written; any browser opens it.")


def _refuse(options: Mapping[str, object], other: str) -> None:
    if wrong := [option for option, value in options.items() if value is not None]:
        raise ConfigError(
            Fault(option, "contradiction", f"does not go with {other}; leave it out") for option in wrong
        )


def _evaluate_downstream(
    enhanced: Path, truth: Path, segmenter: str | None, labels: Path | None, others: Mapping[str, object]
) -> None:
    if segmenter is None:
        raise ConfigError(Fault("--labels", "contradiction", "it goes with --downstream; name a model there"))
    _refuse(others, "--downstream, which writes beside the enhanced images")
    from pipeline.workflows.downstream import REPORT, evaluate_downstream

    result = evaluate_downstream(enhanced, truth, segmenter, labels)
    show_effects(result.effects)
    show_turns(result.turns)
    if result.told is not None:
        (ERR if result.is_warning else OUT).print(f"{'warning: ' if result.is_warning else ''}{result.told}")
    OUT.print(f"Masks, the table and figures lie in {enhanced}; see {REPORT}")
    if result.faults:
        raise InputError(result.faults)


def _evaluate_classes(predictions: Path, references: Path, output: Path | None) -> None:
    from pipeline.workflows.class_evaluation import evaluate_classes

    evaluation = evaluate_classes(predictions, references, output)
    show_figures(evaluation.figures, f"{evaluation.num_cases} predictions against references")
    OUT.print(f"{evaluation.num_reviewed} of them are marked for review.")
    if evaluation.faults:
        raise InputError(evaluation.faults)
