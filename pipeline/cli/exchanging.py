"""What talks with a PACS: pacs pull, pacs push, listen, pacs status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pipeline.cli.app import Device, Model, Regularise, Series, app, series_rules
from pipeline.cli.showing import OUT
from pipeline.errors import InputError
from pipeline.pacs.address import DEFAULT_AET

if TYPE_CHECKING:
    from pipeline.pacs.entries import Standing

_PANEL = "Exchange with a PACS"

pacs_app = typer.Typer(help="Fetch studies from a PACS, send results to it.", no_args_is_help=True)
app.add_typer(pacs_app, name="pacs", rich_help_panel=_PANEL)
Aet = Annotated[str, typer.Option("--aet", help="Our own application entity's title (DIMSE).")]


@pacs_app.command("pull")
def pacs_pull(
    source: Annotated[
        str, typer.Argument(help="dicom://AETITLE@host:port, or the root of a DICOMweb service.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the studies.")],
    *,
    study: Annotated[str | None, typer.Option(help="Study Instance UID.")] = None,
    patient: Annotated[str | None, typer.Option(help="Patient ID: all studies of the patient.")] = None,
    accession: Annotated[str | None, typer.Option(help="Accession number.")] = None,
    series: Annotated[
        list[str] | None,
        typer.Option("--series", help="Only such series: UID, id, number or description; may be repeated."),
    ] = None,
    aet: Aet = DEFAULT_AET,
    receive_at: Annotated[
        str | None,
        typer.Option(help="host:port of ours, for a PACS that sends (C-MOVE) instead of answering (C-GET)."),
    ] = None,
) -> None:
    """Fetch studies: each lies in DIR/<study>/ when all of it came, and not before."""
    from pipeline.pacs.instances import Query
    from pipeline.workflows.pulling import pull

    pulled = pull(source, Query(study, patient, accession), output, series or [], aet, receive_at)
    for one in pulled.studies:
        what = f"{one.num_series} series, {one.num_instances} instances"
        OUT.print(f"{one.folder}: {what}{'' if one.is_new else ', there already'}")
    if pulled.faults:
        raise InputError(pulled.faults)


@pacs_app.command("push")
def pacs_push(
    inputs: Annotated[list[Path], typer.Argument(help="DICOM files, or folders or a DICOMDIR of them.")],
    to: Annotated[
        str, typer.Option("--to", help="dicom://AETITLE@host:port, or the root of a DICOMweb service.")
    ],
    *,
    aet: Aet = DEFAULT_AET,
) -> None:
    """Send DICOM files as they are; the PACS acknowledges each."""
    from pipeline.workflows.pushing import push

    pushed = push(inputs, to, aet)
    OUT.print(f"{pushed.num_files} files are stored in the PACS.")
    if pushed.faults:
        raise InputError(pushed.faults)


@app.command(rich_help_panel=_PANEL)
def listen(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for queue, images and results.")],
    to: Annotated[
        str, typer.Option("--to", help="Where segmentations go: dicom://AETITLE@host:port, or DICOMweb.")
    ],
    allow: Annotated[
        list[str], typer.Option(help="Application entity's title that may send; may be repeated.")
    ],
    *,
    at: Annotated[str, typer.Option(help="host:port to listen on.")] = "127.0.0.1:11112",
    aet: Aet = DEFAULT_AET,
    settle: Annotated[
        float, typer.Option(help="Seconds without a new instance after which a study is complete.")
    ] = 30.0,
    keep: Annotated[
        float, typer.Option(help="Days after which the images of an answered study are removed.")
    ] = 7.0,
    series: Series = None,
    regularise: Regularise = False,
    device: Device = "auto",
) -> None:
    """Receive studies, predict each, and send its segmentation to a PACS, exactly once; until stopped."""
    from pipeline.workflows.listening import Manner
    from pipeline.workflows.listening import listen as run_listening

    manner = Manner(at, aet, tuple(allow), settle, keep, tuple(series_rules(series, regularise)), device)
    run_listening(model, output, to, manner, _tell_now)


@pacs_app.command("status")
def pacs_status(
    folder: Annotated[Path, typer.Argument(help="That `clinseg listen` was given with -o.")],
    *,
    retry: Annotated[bool, typer.Option("--retry", help="Take up again what is parked.")] = False,
) -> None:
    """Show what a listener received, predicted and sent, and what is parked, with the reason."""
    from pipeline.workflows.listening import standings

    _show_standings(standings(folder, retry=retry))


def _tell_now(text: str) -> None:
    """A line of a log: what happens, and when."""
    OUT.print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}")


def _show_standings(standings: Sequence[Standing]) -> None:
    """How many studies stand where, and those that did not get through, with the reason."""
    counts = Counter((one.model[:12], one.state) for one in standings)
    table = Table("model", "state", "studies", box=None)
    for (model, state), count in counts.items():
        table.add_row(model or "none yet", state, str(count))
    OUT.print(table)
    for one in standings:
        if one.reason:
            OUT.print(f"{one.study} ({one.uid}): {one.state}, {one.reason}")
