"""What is done with images without a model: series, convert, deidentify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import Regularise, app
from pipeline.cli.showing import OUT, show_faults, show_series
from pipeline.errors import InputError

_PANEL = "Images"


@app.command(rich_help_panel=_PANEL)
def series(
    path: Annotated[Path, typer.Argument(help="Folder with DICOM files inside, a DICOMDIR, or a file.")],
) -> None:
    """List the DICOM series in a folder, and why some cannot be volumes; no name of a patient is read."""
    from pipeline.workflows.series import list_all_series

    show_series(list_all_series(path))


@app.command(rich_help_panel=_PANEL)
def convert(
    source: Annotated[Path, typer.Argument(help="An .nrrd or .mha file, or a folder or DICOMDIR of DICOM.")],
    target: Annotated[Path, typer.Argument(help="The .nii or .nii.gz to write.")],
    series_: Annotated[
        str | None, typer.Option("--series", help="DICOM series to read: id, number or description.")
    ] = None,
    regularise: Regularise = False,
) -> None:
    """Write an image of another format as NIfTI, verified, with its geometry."""
    from pipeline.data.dicom import SeriesRule
    from pipeline.workflows.converting import convert as run_conversion

    grid, doubts = run_conversion(source, target, SeriesRule(series_, regularise))
    show_faults("warning", doubts)
    shape = " x ".join(map(str, grid.shape))
    spacing = " x ".join(f"{mm:.4g}" for mm in grid.spacing)
    OUT.print(f"{target}: {shape} voxels of {spacing} mm, {grid.orientation}")


@app.command(rich_help_panel=_PANEL)
def deidentify(
    source: Annotated[Path, typer.Argument(help="Folder with DICOM or NIfTI inside, a DICOMDIR, or a file.")],
    output: Annotated[Path, typer.Argument(help="Empty folder for the images.")],
    key: Annotated[
        Path, typer.Option(help="File with the secret key, kept elsewhere; made if it is not there.")
    ],
) -> None:
    """Copy images without what identifies their patients: pseudonyms, shifted dates, no free text."""
    from pipeline.workflows.deidentification import deidentify as run_deidentification

    result = run_deidentification(source, output, key)
    show_faults("warning", result.warnings)
    OUT.print(f"{result.num_files} images of {result.num_patients} DICOM patients lie in {output}")
    OUT.print(f"The same key gives the same pseudonyms: keep {key} secret, and do not lose it.")
    if result.faults:
        raise InputError(result.faults)
