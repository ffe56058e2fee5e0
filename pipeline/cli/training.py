"""What makes models: plan, check, train, sweep, demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import Config, Overrides, app
from pipeline.cli.showing import (
    ERR,
    OUT,
    show_delivery,
    show_faults,
    show_judgement,
    show_metrics,
    show_sweep,
    show_trial,
)
from pipeline.errors import ConfigError, Fault, InputError

_PANEL = "Make models"
_MOST_MINUTES = 1_000_000


@app.command(rich_help_panel=_PANEL)
def plan(
    data: Annotated[Path, typer.Argument(help="A dataset.json, an nnU-Net raw folder, or a CSV.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="YAML to write.")],
    minutes: Annotated[float, typer.Option(min=0.01, help="Budget of the training.")] = 60.0,
    labels: Annotated[
        str | None, typer.Option(help="Labels of a CSV, such as background=0,liver=1; else numbered.")
    ] = None,
) -> None:
    """Write a complete config for your data and this machine, each choice with its reason."""
    if not minutes <= _MOST_MINUTES:  # nor what is no number
        message = f"expected at most {_MOST_MINUTES:g} minutes, got {minutes:g}"
        raise ConfigError(Fault("--minutes", "minutes", message))
    from pipeline.workflows.planning import plan as run_plan

    result = run_plan(data, output, minutes, None if labels is None else _parse_labels(labels))
    for line in (*result.study, *result.estimate.lines(), *result.advice):
        OUT.print(line)
    OUT.print(f"{result.config} is written; what was measured lies in {result.fingerprint}")
    OUT.print(f"Read it, then: clinseg train {result.config}")


@app.command(rich_help_panel=_PANEL)
def check(config: Config, overrides: Overrides = None) -> None:
    """Read everything a job needs once and say all that is wrong."""
    from pipeline.workflows.checking import check as run_check

    report = run_check(config, overrides or [])
    show_faults("warning", report.warnings)
    if report.errors:
        raise InputError(report.errors)
    OUT.print(f"{report.num_cases} cases are fit for training, {len(report.warnings)} warnings.")


@app.command(rich_help_panel=_PANEL)
def train(
    config: Annotated[Path | None, typer.Argument(help="YAML of the job; left out to resume.")] = None,
    overrides: Overrides = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this run, or `latest`.")] = None,
    fold: Annotated[
        str | None, typer.Option(help="Fold to validate on, `all` of them in turn, or `none`.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell minutes, memory and disk, from 20 steps.")
    ] = False,
) -> None:
    """Train a network, or one per fold and their ensemble; record it, judge it on its validation cases."""
    settings = [*(overrides or []), *([f"data.fold={fold}"] if fold is not None else [])]
    if dry_run:
        _estimate(config, settings, resume)
        return
    from pipeline.workflows.cross_validation import train_folds

    result = train_folds(
        config,
        settings,
        resume,
        on_needs=lambda needs: ERR.print(f"training: {needs}"),
        on_start=lambda start: ERR.print(f"starting {start}"),
    )
    if result is None:  # one of several processes, of which the first tells
        return
    show_faults("warning", result.judgement.remarks)
    show_judgement(result.judgement)
    OUT.print(f"Run {result.run} {result.ending}. It lies in {result.folder}")
    OUT.print(f"Apply it:   clinseg {result.command} {result.run} INPUT -o results")
    OUT.print(f"Look at it: {result.folder / 'report.html'}, or clinseg ui")
    for delivery in result.deliveries:
        show_delivery(delivery)


@app.command(rich_help_panel=_PANEL)
def sweep(
    config: Annotated[Path | None, typer.Argument(help="YAML of the job; left out to resume.")] = None,
    *,
    choices: Annotated[
        list[str] | None, typer.Option("--set-grid", help="Values to try, key=a,b,…; may be repeated.")
    ] = None,
    ranges: Annotated[
        list[str] | None, typer.Option("--set-range", help="Numbers to draw, key=low..high[:log].")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="How many to draw; else every combination of --set-grid.")
    ] = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="YAML to write the best config to.")
    ] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this sweep, or `latest`.")] = None,
) -> None:
    """Train a job with several settings, one after the other, and find the best of them."""
    from pipeline.workflows.sweeping import sweep as run_sweep
    from pipeline.workflows.sweeps.course import Request

    request = Request(tuple(choices or ()), tuple(ranges or ()), trials)
    result = run_sweep(config, request, overrides or [], resume, output, show_trial)
    show_sweep(result)


@app.command(rich_help_panel=_PANEL)
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for everything it makes.")] = Path(
        "demo"
    ),
) -> None:
    """Make a study of heads, train on it, predict and judge heads that were held out."""
    from pipeline.workflows.demo import demo as run_demo

    result = run_demo(output)
    show_metrics(result.rows, "Held-out heads")
    for name in ("images", "references", "predictions", "metrics.csv", "overlays"):
        OUT.print(f"{output / name}")
    OUT.print(f"The run {result.training.run} lies in {result.training.folder}")
    OUT.print("Open its record with: clinseg ui")
    for delivery in result.training.deliveries:
        show_delivery(delivery)


def _estimate(config: Path | None, settings: Sequence[str], resume: str | None) -> None:
    """Shows what a training would take."""
    if config is None or resume is not None:
        message = "it is for a new run; name its config and leave --resume out"
        raise ConfigError(Fault("--dry-run", "contradiction", message))
    from pipeline.workflows.estimating import estimate

    for line in estimate(config, settings).lines():
        OUT.print(line)


def _parse_labels(text: str) -> dict[str, int]:
    """Values by name, of `background=0,liver=1`."""
    pairs = [part.rpartition("=") for part in text.split(",")]
    labels = {
        name.strip(): int(value) for name, _, value in pairs if value.strip().isdecimal() and len(value) < 20
    }
    if len(labels) < len(pairs) or "" in labels:
        message = f"labels are given as background=0,liver=1, each name once, not {text!r}"
        raise ConfigError(Fault("--labels", "labels", message))
    return labels
