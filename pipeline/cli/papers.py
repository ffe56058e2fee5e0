"""What goes with a model to others and comes with one from them: export, import, card, and the audit log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import Model, app
from pipeline.cli.showing import OUT

_PANEL = "Hand on"


@app.command(rich_help_panel=_PANEL)
def export(
    model: Model,
    form: Annotated[str, typer.Option("--format", help="bundle (MONAI), onnx or torch-export.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File, or folder of a bundle.")],
    on: Annotated[
        Path | None, typer.Option("--on", help="Image to measure on what is lost; else a made-up one.")
    ] = None,
) -> None:
    """Write a segmentation model in a form that other programs run, and say what was lost."""
    from pipeline.workflows.exporting import export as run_export

    result = run_export(model, form, output, on)
    OUT.print(f"{result.path} is written. Its card: {result.card}", soft_wrap=True)
    share = f"{result.num_differing} of {result.num_voxels} voxels of {result.on}"
    OUT.print(f"{share} get another label than by `clinseg predict`.", soft_wrap=True)


@app.command(rich_help_panel=_PANEL)
def import_bundle(
    bundle: Annotated[Path, typer.Argument(help="Folder or zip of a MONAI bundle.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .safetensors to write.")],
) -> None:
    """Make a model of a MONAI bundle that defines its network plainly; nothing in it is run."""
    from pipeline.workflows.importing_bundle import import_bundle as run_import

    result = run_import(bundle, output)
    marked = ", ".join(f"{name} ({value})" for name, value in result.labels.items() if value)
    whence = "the checkpoint that clinseg put into the bundle" if result.is_own else "the bundle's definition"
    OUT.print(f"{output} is written, of {whence}. It marks {marked}.", soft_wrap=True)
    for told in result.differences:
        OUT.print(f"warning: at borders of structures: {told}", soft_wrap=True)


@app.command(rich_help_panel=_PANEL)
def card(
    model: Model,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Markdown to write.")] = None,
) -> None:
    """Write what there is to know of a model, with gaps where only a person knows."""
    from pipeline.workflows.cards import card as write_card

    text = write_card(model, output)
    if output is None:
        print(text, end="")
    else:
        OUT.print(f"{output} is written; fill in what it asks for.")


audit_app = typer.Typer(help="The log of what was predicted.", no_args_is_help=True)
app.add_typer(audit_app, name="audit", rich_help_panel=_PANEL)


@audit_app.command("verify")
def audit_verify(
    log: Annotated[Path, typer.Argument(help="An audit.jsonl, or the folder that it lies in.")],
    head: Annotated[
        str | None, typer.Option(help="Hash of its last line as you noted it; else that in report.json.")
    ] = None,
) -> None:
    """Tell whether any line of the log, or a file that it tells of, was changed, removed or moved."""
    from pipeline.workflows.auditing import verify_log

    audit = verify_log(log, head)
    gone = f", {len(audit.missing)} are no longer there" if audit.missing else ""
    OUT.print(f"{audit.num_entries} entries are whole; {audit.num_outputs} files are as written{gone}.")
    OUT.print(f"Its head, to be noted elsewhere: {audit.head}", soft_wrap=True)
