"""What applies models to images: predict, enhance."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import Device, Inputs, MaxMemory, Model, Regularise, Series, Verbose, app, series_rules
from pipeline.cli.showing import OUT, plan_shower, show_faults, show_image_figures
from pipeline.errors import InputError

_PANEL = "Apply them"


class Explanation(StrEnum):
    """Ways to show what a classifier looked at."""

    grad_cam = "grad_cam"
    occlusion = "occlusion"


@app.command(rich_help_panel=_PANEL)
def predict(
    model: Model,
    inputs: Inputs,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for masks and report.json.")],
    *,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    series: Series = None,
    regularise: Regularise = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the masks made before.")] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write DIR/probabilities/<case>.nii as well.")
    ] = False,
    compiles: Annotated[
        bool, typer.Option("--compile", help="Compile the networks first: pays off with many windows.")
    ] = False,
    also: Annotated[
        str | None,
        typer.Option(help="Further forms for DICOM series, such as dicom-seg,rtstruct: DIR/FORM/<case>.dcm."),
    ] = None,
    explain: Annotated[
        Explanation | None, typer.Option("--explain", help="Show what a classifier's answers rest on.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Predict masks on the images' own grids, or classes."""
    from pipeline.workflows.prediction import predict as run_prediction

    reports = run_prediction(
        model,
        inputs,
        output,
        device,
        max_memory,
        rules=series_rules(series, regularise),
        resume=resume,
        with_probabilities=probabilities,
        compiles=compiles,
        also=[form.strip() for form in also.split(",")] if also is not None else [],
        method=explain.value if explain is not None else None,
        on_plan=plan_shower(verbose),
    )
    show_faults("warning", (warning for report in reports for warning in report.warnings))
    refused = [fault for report in reports for fault in report.faults]
    num_predicted = len(reports) - sum(bool(report.faults) for report in reports)
    OUT.print(f"{num_predicted} of {len(reports)} cases predicted. What came of each lies in {output}")
    if refused:
        raise InputError(refused)


@app.command(rich_help_panel=_PANEL)
def enhance(
    model: Model,
    inputs: Inputs,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for images and report.json.")],
    *,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    series: Series = None,
    regularise: Regularise = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the images made before.")] = False,
    reverse: Annotated[bool, typer.Option("--reverse", help="Go from the target to the source.")] = False,
    truth: Annotated[
        Path | None, typer.Option(help="What they should look like: a file, or a folder by the same names.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Enhance images, show what was changed in them, and compare them with the truth if there is one."""
    from pipeline.workflows.enhancing import enhance as run_enhancement

    result = run_enhancement(
        model,
        inputs,
        output,
        device,
        max_memory,
        rules=series_rules(series, regularise),
        resume=resume,
        reverse=reverse,
        truth=truth,
        on_plan=plan_shower(verbose),
    )
    show_faults("warning", (warning for report in result.reports for warning in report.warnings))
    show_image_figures(result.figures)
    num_enhanced = sum(report.files is not None for report in result.reports)
    OUT.print(f"{num_enhanced} of {len(result.reports)} cases enhanced. What came of each lies in {output}")
    if result.faults:
        raise InputError(result.faults)
