"""Every command: parse, call one workflow, show what it returns, end with its exit code."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from pipeline.cli.showing import (
    ERR,
    OUT,
    plan_shower,
    show_comparison,
    show_delivery,
    show_effects,
    show_faults,
    show_figures,
    show_image_figures,
    show_judgement,
    show_metrics,
    show_series,
    show_sweep,
    show_trial,
    show_turns,
)
from pipeline.errors import ConfigError, ExitCode, Fault, FaultError, InputError, Stopped
from pipeline.files import resource_error
from pipeline.signals import StopSignals

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


Series = Annotated[
    list[str] | None,
    typer.Option("--series", help="DICOM series to read: id, number or description; once per channel."),
]
Regularise = Annotated[
    bool, typer.Option("--regularise", help="Resample a DICOM series with gaps, copies, tilt or mixed sizes.")
]


class Explanation(StrEnum):
    """Ways to show what a classifier looked at."""

    grad_cam = "grad_cam"
    occlusion = "occlusion"


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="YAML of the job; not needed to resume.")] = None,
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
        on_needs=lambda needs: ERR.print(f"training: {needs}", markup=False),
        on_start=lambda start: ERR.print(f"starting {start}", markup=False),
    )
    if result is None:  # one of several processes, of which the first tells
        return
    show_judgement(result.judgement)
    OUT.print(f"Run {result.run} {result.ending}. It lies in {result.folder}")
    OUT.print(f"Apply it:   clinseg {result.command} {result.run} INPUT -o results")
    OUT.print(f"Look at it: {result.folder / 'report.html'}, or clinseg ui", markup=False)
    for delivery in result.deliveries:
        show_delivery(delivery)


@app.command()
def sweep(
    config: Annotated[Path | None, typer.Argument(help="YAML of the job; not needed to resume.")] = None,
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
    from pipeline.workflows.sweep_course import Request
    from pipeline.workflows.sweeping import sweep as run_sweep

    request = Request(tuple(choices or ()), tuple(ranges or ()), trials)
    result = run_sweep(config, request, overrides or [], resume, output, show_trial)
    show_sweep(result)


@app.command()
def plan(
    data: Annotated[Path, typer.Argument(help="A dataset.json, an nnU-Net raw folder, or a CSV.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="YAML to write.")],
    minutes: Annotated[float, typer.Option(min=0.01, help="Budget of the training.")] = 60.0,
    labels: Annotated[
        str | None, typer.Option(help="Labels of a CSV, such as background=0,liver=1; else numbered.")
    ] = None,
) -> None:
    """Write a complete config for your data and this machine, each choice with its reason."""
    from pipeline.workflows.planning import plan as run_plan

    result = run_plan(data, output, minutes, None if labels is None else _parse_labels(labels))
    for line in (*result.study, *result.estimate.lines(), *result.advice):
        OUT.print(line, markup=False)
    OUT.print(f"{result.config} is written; what was measured lies in {result.fingerprint}")
    OUT.print(f"Read it, then: clinseg train {result.config}")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Run, `latest`, checkpoint file or models:/name@alias.")],
    inputs: Annotated[
        list[Path], typer.Argument(help="NIfTI files, folders of them, or folders or a DICOMDIR of DICOM.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for masks and report.json.")],
    *,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_memory: Annotated[
        str | None, typer.Option(help="Memory to keep within, such as 2GiB; else what is free.")
    ] = None,
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
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show each case's plan.")] = False,
) -> None:
    """Predict masks on the images' own grids, or classes."""
    from pipeline.workflows.prediction import predict as run_prediction

    reports = run_prediction(
        model,
        inputs,
        output,
        device,
        max_memory,
        rules=_series_rules(series, regularise),
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


@app.command()
def enhance(
    model: Annotated[str, typer.Argument(help="Run, `latest`, checkpoint file or models:/name@alias.")],
    inputs: Annotated[
        list[Path], typer.Argument(help="NIfTI files, folders of them, or folders or a DICOMDIR of DICOM.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for images and report.json.")],
    *,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    max_memory: Annotated[
        str | None, typer.Option(help="Memory to keep within, such as 2GiB; else what is free.")
    ] = None,
    series: Series = None,
    regularise: Regularise = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the images made before.")] = False,
    reverse: Annotated[bool, typer.Option("--reverse", help="Go from the target to the source.")] = False,
    truth: Annotated[
        Path | None, typer.Option(help="What they should look like: a file, or a folder by the same names.")
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show each case's plan.")] = False,
) -> None:
    """Enhance images, show what was changed in them, and compare them with the truth if there is one."""
    from pipeline.workflows.enhancing import enhance as run_enhancement

    result = run_enhancement(
        model,
        inputs,
        output,
        device,
        max_memory,
        rules=_series_rules(series, regularise),
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


@app.command()
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
        _evaluate_classes(predictions, references, output)
        return
    from pipeline.workflows.evaluation import evaluate as run_evaluation

    evaluation = run_evaluation(predictions, references, output, config, ignore)
    show_metrics(evaluation.rows, "Predictions against references")
    show_faults("warning", evaluation.warnings)
    if evaluation.faults:
        raise InputError(evaluation.faults)


def _evaluate_downstream(
    enhanced: Path, truth: Path, segmenter: str | None, labels: Path | None, others: Mapping[str, object]
) -> None:
    if segmenter is None:
        raise ConfigError(Fault("--labels", "contradiction", "it goes with --downstream; name a model there"))
    if wrong := [option for option, value in others.items() if value is not None]:
        message = "does not go with --downstream, which writes beside the enhanced images; leave it out"
        raise ConfigError(Fault(option, "contradiction", message) for option in wrong)
    from pipeline.workflows.downstream import REPORT, evaluate_downstream

    result = evaluate_downstream(enhanced, truth, segmenter, labels)
    show_effects(result.effects)
    show_turns(result.turns)
    if result.told is not None:
        (ERR if result.is_warning else OUT).print(
            f"{'warning: ' if result.is_warning else ''}{result.told}", markup=False
        )
    OUT.print(f"Masks, the table and figures lie in {enhanced}; see {REPORT}", markup=False)
    if result.faults:
        raise InputError(result.faults)


def _evaluate_classes(predictions: Path, references: Path, output: Path | None) -> None:
    from pipeline.workflows.class_evaluation import evaluate_classes

    evaluation = evaluate_classes(predictions, references, output)
    show_figures(evaluation.figures, f"{evaluation.num_cases} predictions against references")
    OUT.print(f"{evaluation.num_reviewed} of them are marked for review.")
    if evaluation.faults:
        raise InputError(evaluation.faults)


@app.command()
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


@app.command()
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
    OUT.print(f"{path} is written; any browser opens it.", markup=False)


audit_app = typer.Typer(help="The log of what was predicted.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")


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


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Run, `latest`, checkpoint file or models:/name@alias.")],
    form: Annotated[str, typer.Option("--format", help="bundle (MONAI), onnx or torch-export.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File, or folder of a bundle.")],
    on: Annotated[
        Path | None, typer.Option("--on", help="Image to measure on what is lost; else a made-up one.")
    ] = None,
) -> None:
    """Write a segmentation model in a form that other programs run, and say what was lost."""
    from pipeline.workflows.exporting import export as run_export

    result = run_export(model, form, output, on)
    OUT.print(f"{result.path} is written. Its card: {result.card}", markup=False, soft_wrap=True)
    share = f"{result.num_differing} of {result.num_voxels} voxels of {result.on}"
    OUT.print(f"{share} get another label than by `clinseg predict`.", markup=False, soft_wrap=True)


@app.command()
def card(
    model: Annotated[str, typer.Argument(help="Run, `latest`, checkpoint file or models:/name@alias.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Markdown to write.")] = None,
) -> None:
    """Write what there is to know of a model, with gaps where only a person knows."""
    from pipeline.workflows.cards import card as write_card

    text = write_card(model, output)
    if output is None:
        print(text, end="")
    else:
        OUT.print(f"{output} is written; fill in what it asks for.", markup=False)


@app.command()
def check(config: Config, overrides: Overrides = None) -> None:
    """Read everything a job needs once and say all that is wrong."""
    from pipeline.workflows.checking import check as run_check

    report = run_check(config, overrides or [])
    show_faults("warning", report.warnings)
    if report.errors:
        raise InputError(report.errors)
    OUT.print(f"{report.num_cases} cases are fit for training, {len(report.warnings)} warnings.")


@app.command()
def series(
    path: Annotated[Path, typer.Argument(help="Folder with DICOM files inside, a DICOMDIR, or a file.")],
) -> None:
    """List the DICOM series in a folder, and why some cannot be volumes; no name of a patient is read."""
    from pipeline.workflows.series import list_all_series

    show_series(list_all_series(path))


@app.command()
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
    OUT.print(f"{target}: {shape} voxels of {spacing} mm, {grid.orientation}", markup=False)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def sync(run: Annotated[str, typer.Argument(help="Run, or `latest`.")]) -> None:
    """Take to MLflow what it lacks of a run."""
    from pipeline.workflows.records import sync as run_sync

    deliveries = run_sync(run)
    for delivery in deliveries:
        show_delivery(delivery)
    if any(delivery.undelivered for delivery in deliveries):
        raise typer.Exit(ExitCode.SERVICE)
    OUT.print(f"MLflow has all of {', '.join(delivery.run for delivery in deliveries)}.")


@app.command()
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
    OUT.print(f"{version.run} {state} version {version.version} of {version.name}", markup=False)
    reference = f"models:/{version.name}" + (f"@{alias}" if alias else f"/{version.version}")
    command = "enhance" if version.task == "enhancement" else "predict"
    OUT.print(f"Apply it: clinseg {command} {shlex.quote(reference)} INPUT -o results", markup=False)
    serve = f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow models serve --env-manager local -t 600"
    OUT.print(f"Serve it: {serve} -p 5001 -m {shlex.quote(reference)}", markup=False)


@app.command()
def models() -> None:
    """List the registered models and their versions."""
    from pipeline.workflows.registering import models as list_models

    table = Table("name", "version", "aliases", "run", "task", "score", box=None)
    for version in list_models():
        cells = (", ".join(version.aliases), version.run, version.task, version.score)
        table.add_row(*map(escape, (version.name, str(version.version), *cells)))
    OUT.print(table if table.row_count else "No model is registered; `clinseg register RUN NAME` does it.")


@app.command()
def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="Port on loopback.")] = 5000) -> None:
    """Open MLflow's UI on this project's store."""
    from pipeline.workflows.records import ui as run_ui

    def tell(address: str) -> None:
        OUT.print(f"MLflow answers until you press Ctrl-C at\n{address}", markup=False, soft_wrap=True)

    run_ui(port, tell)


@app.command()
def import_mlruns(
    folder: Annotated[Path, typer.Argument(help="Where an older MLflow kept runs as files, such as mlruns.")],
) -> None:
    """Take over the runs of a folder that MLflow no longer reads."""
    from pipeline.workflows.records import import_mlruns as run_import

    done = run_import(folder)
    known = f", {done.num_known} were here already" if done.num_known else ""
    OUT.print(f"{len(done.imported)} runs are imported{known}. Look at them with: clinseg ui")
    if done.num_models:
        ERR.print(f"warning: {done.num_models} registered models stay there; register their runs anew")


@app.command()
def doctor() -> None:
    """Show versions, device, memory, and what is missing."""
    from pipeline.workflows.doctor import doctor as diagnose

    diagnosis = diagnose()
    table = Table(box=None, show_header=False)
    for name, value in diagnosis.facts.items():
        table.add_row(name, value)
    OUT.print(table)
    for problem in diagnosis.problems:
        OUT.print(f"! {problem}")


@app.command(hidden=True)
def schema() -> None:
    """Print the JSON schema of a job, for editors; `configs/schema.json` is made with it."""
    import json

    from pipeline.config import job_schema

    print(json.dumps(job_schema(), indent=2))


def main() -> NoReturn:
    """Runs a command and ends with its exit code; only a bug of ours shows a traceback."""
    # What libraries say to their programmers is no use to the people at the command line.
    warnings.simplefilter("ignore")
    try:
        with StopSignals():
            app(prog_name="clinseg")
    except FaultError as error:
        show_faults("error", error.faults)
        sys.exit(error.exit_code)
    except Stopped as stopped:
        ERR.print(f"stopped; {stopped}" if stopped.args else "stopped", markup=False)
        sys.exit(ExitCode.STOPPED)
    except MemoryError:
        show_faults("error", [Fault("memory", "out-of-memory", "it does not suffice; end other programs")])
        sys.exit(ExitCode.RESOURCES)
    except OSError as error:
        show_faults("error", resource_error(Path(error.filename or "disk"), error).faults)
        sys.exit(ExitCode.RESOURCES)
    sys.exit(ExitCode.DONE)


def _estimate(config: Path | None, settings: Sequence[str], resume: str | None) -> None:
    """Shows what a training would take."""
    if config is None or resume is not None:
        message = "it is for a new run; name its config and leave --resume out"
        raise ConfigError(Fault("--dry-run", "contradiction", message))
    from pipeline.workflows.estimating import estimate

    for line in estimate(config, settings).lines():
        OUT.print(line, markup=False)


def _series_rules(patterns: Sequence[str] | None, is_regularised: bool) -> list[SeriesRule]:
    from pipeline.data.dicom import SeriesRule

    named: Sequence[str | None] = patterns or [None]
    return [SeriesRule(pattern, is_regularised) for pattern in named]


def _parse_labels(text: str) -> dict[str, int]:
    """Values by name, of `background=0,liver=1`."""
    pairs = [part.rpartition("=") for part in text.split(",")]
    labels = {name.strip(): int(value) for name, _, value in pairs if value.strip().isdecimal()}
    if len(labels) < len(pairs) or "" in labels:
        message = f"labels are given as background=0,liver=1, each name once, not {text!r}"
        raise ConfigError(Fault("--labels", "labels", message))
    return labels
