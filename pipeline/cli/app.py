"""The program, and the options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.data.dicom import SeriesRule

app = typer.Typer(
    help="Train, compare and apply segmentation, classification and enhancement models on clinical images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Config = Annotated[Path, typer.Argument(help="YAML of the job, such as configs/hippocampus.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override of a setting, key=value; may be repeated.")
]
Model = Annotated[str, typer.Argument(help="Run, `latest`, checkpoint file or models:/name@alias.")]
Inputs = Annotated[
    list[Path], typer.Argument(help="NIfTI files, folders of them, or folders or a DICOMDIR of DICOM.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
MaxMemory = Annotated[
    str | None, typer.Option(help="Memory to keep within, such as 2GiB; else what is free.")
]
Series = Annotated[
    list[str] | None,
    typer.Option("--series", help="DICOM series to read: id, number or description; once per channel."),
]
Regularise = Annotated[
    bool, typer.Option("--regularise", help="Resample a DICOM series with gaps, copies, tilt or mixed sizes.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show each case's plan.")]


def series_rules(patterns: Sequence[str] | None, is_regularised: bool) -> list[SeriesRule]:
    """What `--series` and `--regularise` mean together."""
    from pipeline.data.dicom import SeriesRule

    named: Sequence[str | None] = patterns or [None]
    return [SeriesRule(pattern, is_regularised) for pattern in named]
