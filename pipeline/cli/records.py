"""What runs and models were recorded: runs, ui, sync, import-mlruns, register, models."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipeline.cli.app import app
from pipeline.cli.showing import ERR, OUT, show_delivery
from pipeline.errors import ExitCode

_PANEL = "Runs and models on record"


@app.command(rich_help_panel=_PANEL)
def runs(limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20) -> None:
    """List the runs on this disk."""
    from pipeline.workflows.records import runs as list_runs

    table = Table("run", "experiment", "status", "started", "minutes", "score", "undelivered", box=None)
    for run in list_runs(limit):
        table.add_row(
            run.name,
            run.experiment,
            run.status.lower(),
            f"{run.started:%Y-%m-%d %H:%M}",
            f"{run.minutes:.1f}",
            run.score,
            str(run.undelivered),
        )
    OUT.print(table if table.row_count else "There are no runs here yet; `clinseg train CONFIG` makes one.")


@app.command(rich_help_panel=_PANEL)
def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="Port on loopback.")] = 5000) -> None:
    """Open MLflow's UI on this project's store."""
    from pipeline.workflows.records import ui as run_ui

    def tell(address: str) -> None:
        OUT.print(f"MLflow answers until you press Ctrl-C at\n{address}", soft_wrap=True)

    run_ui(port, tell)


@app.command(rich_help_panel=_PANEL)
def sync(run: Annotated[str, typer.Argument(help="Run, or `latest`.")]) -> None:
    """Take to MLflow what it lacks of a run."""
    from pipeline.workflows.records import sync as run_sync

    deliveries = run_sync(run)
    for delivery in deliveries:
        show_delivery(delivery)
    if any(delivery.undelivered for delivery in deliveries):
        raise typer.Exit(ExitCode.SERVICE)
    OUT.print(f"MLflow has all of {', '.join(delivery.run for delivery in deliveries)}.")


@app.command(rich_help_panel=_PANEL)
def import_mlruns(
    folder: Annotated[Path, typer.Argument(help="Where an older MLflow kept runs as files, such as mlruns.")],
) -> None:
    """Take over runs and registered models of a folder that MLflow no longer reads."""
    from pipeline.workflows.records import import_mlruns as run_import

    done = run_import(folder)
    known = f", {done.num_known} were here already" if done.num_known else ""
    OUT.print(f"{len(done.imported)} runs are imported{known}. Look at them with: clinseg ui")
    if done.models:
        OUT.print(f"Models came along ({', '.join(done.models)}); list them with: clinseg models")
    for reason in done.left:
        ERR.print(f"warning: left behind: model {reason}")


@app.command(rich_help_panel=_PANEL)
def register(
    run: Annotated[str, typer.Argument(help="Run, or `latest`.")],
    name: Annotated[str, typer.Argument(help="Name of the model, such as hippocampus.")],
    alias: Annotated[
        str | None, typer.Option(help="Shall stand for this version from now on, such as champion.")
    ] = None,
) -> None:
    """Register a run's model, so that others apply or serve it by name."""
    from pipeline.workflows.registering import register as run_register

    version, uri = run_register(run, name, alias)
    state = "is now" if version.is_new else "was already"
    OUT.print(f"{version.run} {state} version {version.version} of {version.name}")
    reference = f"models:/{version.name}" + (f"@{alias}" if alias else f"/{version.version}")
    command = "enhance" if version.task == "enhancement" else "predict"
    OUT.print(f"Apply it: clinseg {command} {shlex.quote(reference)} INPUT -o results")
    serve = f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow models serve --env-manager local -t 600"
    OUT.print(f"Serve it: {serve} -p 5001 -m {shlex.quote(reference)}")


@app.command(rich_help_panel=_PANEL)
def models() -> None:
    """List the registered models and their versions."""
    from pipeline.workflows.registering import models as list_models

    table = Table("name", "version", "aliases", "run", "task", "score", box=None)
    for version in list_models():
        cells = (", ".join(version.aliases), version.run, version.task, version.score)
        table.add_row(version.name, str(version.version), *cells)
    OUT.print(table if table.row_count else "No model is registered; `clinseg register RUN NAME` does it.")
