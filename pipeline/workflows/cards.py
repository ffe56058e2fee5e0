"""`clinseg card`: what there is to know of a model, in Markdown, with gaps where only a person knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pipeline.checkpoint import Checkpoint
from pipeline.errors import ConfigError, Fault
from pipeline.files import write_text
from pipeline.inference.evaluation import read_table, summarise_structures
from pipeline.inference.predictor import load_contract
from pipeline.statistics import interval_text
from pipeline.tracking import RunFolder, find_run, read_children
from pipeline.workflows.judging import TABLE
from pipeline.workflows.models import load_model
from pipeline.workflows.recording import read_estimates
from pipeline.workflows.run_reports import downstream_remarks
from pipeline.workflows.subgroups import GROUP_NOTE, judge_subgroups

TO_FILL: Final = "**To be filled in by a person:**"
_CHOICES: Final = (
    "preprocessing.orientation",
    "preprocessing.spacing",
    "preprocessing.normalisation",
    "preprocessing.window",
    "network.name",
    "network.features",
    "training.patch_size",
    "inference.window_size",
    "inference.overlap",
    "inference.flips",
    "inference.largest_component",
    "training.epochs",
    "training.minutes",
    "training.optimizer",
    "training.learning_rate",
    "training.seed",
    "training.start_from",
)
_METRICS: Final = ("dice", "nsd", "hd95_mm", "sensitivity", "precision")
_MOST_FIGURES: Final = 200
_WARNING: Final = "Warning: "


def card(model: str, output: Path | None = None) -> str:
    """A model card from a checkpoint and, where it is on this disk, the record of its run.

    Args:
        model: A run, `latest`, a checkpoint file or `models:/name@alias`.
        output: Markdown file to write; None to write nothing.

    Returns:
        The card.

    Raises:
        FaultError: If there is no such model, or the file cannot be written or is there already.
    """
    if output is not None and output.exists():
        message = "it is there already, perhaps filled in by hand; choose another name or remove it"
        raise ConfigError(Fault(str(output), "file-exists", message))
    text = describe(load_model(model))
    if output is not None:
        write_text(output, text)
    return text


def describe(checkpoint: Checkpoint, extra: Sequence[str] = ()) -> str:
    """The card of a checkpoint; further sections stand at its end."""
    run = _find_run(checkpoint)
    parts = [
        _head(checkpoint),
        _use(),
        _data(checkpoint),
        _results(checkpoint, run),
        _limits(checkpoint),
        _making(checkpoint),
        extra,
    ]
    return "\n".join(line for part in parts for line in part) + "\n"


def table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """A table in Markdown; what a cell holds stays text."""
    yield _row(heading)
    yield _row(["---"] * len(heading))
    yield from map(_row, rows)


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _find_run(checkpoint: Checkpoint) -> RunFolder | None:
    if "imported" in checkpoint.provenance:
        return None  # a run here may be called as a bundle was
    try:
        return find_run(str(checkpoint.provenance.get("run")))
    except ConfigError:
        return None


def _head(checkpoint: Checkpoint) -> Iterator[str]:
    job, made = checkpoint.job, checkpoint.provenance
    members = f", {len(checkpoint.members)} networks whose mean decides" if checkpoint.members else ""
    yield f"# Model card: {made.get('run') or 'unnamed model'}"
    yield ""
    facts = {
        "Task": job.get("task"),
        "Network": f"{job.get('network', {}).get('name', '')}{members}",
        "Input": f"{len(checkpoint.channels)} channel(s): {', '.join(checkpoint.channels)}",
        "SHA-256 of the checkpoint": checkpoint.content_hash,
        "Card written": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    yield from table(("", ""), [(name, value) for name, value in facts.items() if value])
    if checkpoint.labels and job.get("task") == "segmentation":
        contract = load_contract(checkpoint)
        rows = [
            (name, ", ".join(map(str, contract.structures[name])), term.code.meaning, term.side or "",
             f"{term.code.scheme} {term.code.value}")
            for name, term in contract.terms.items()
        ]  # fmt: skip
        yield from ("", "What it marks:", "")
        yield from table(("structure", "label values", "meaning", "side", "code"), rows)
    elif checkpoint.labels:
        yield from ("", f"Classes: {', '.join(checkpoint.labels)}")


def _use() -> Iterator[str]:
    yield from ("", "## Intended use", "")
    yield f"- {TO_FILL} for whom, for what decision, on which images (scanner, protocol, age)?"
    yield f"- {TO_FILL} who reviews the results, and what happens when one is wrong?"
    yield f"- {TO_FILL} what must it not be used for?"
    yield "- It is no medical device. No result replaces the judgement of a person qualified to give it."


def _data(checkpoint: Checkpoint) -> Iterator[str]:
    made = checkpoint.provenance
    training, validation = made.get("training_cases") or (), made.get("validation_cases") or ()
    yield from ("", "## Data", "")
    if "imported" in made:
        yield from _origin(made["imported"])
        return
    yield f"- Trained on {len(training)} cases; {len(validation)} were held out to judge it."
    if made.get("data_hash"):
        yield f"- SHA-256 of the data that it saw: `{made['data_hash']}`"
    folds = checkpoint.job.get("data", {}).get("fold")
    yield f"- Held-out fold: {folds}. Folds are made by patient: no patient is on both sides."
    yield f"- {TO_FILL} where do they come from, who drew the references, under which licence and consent?"
    yield f"- {TO_FILL} whom do they represent, and whom not (sex, age, ethnicity, disease, scanner)?"


def _origin(found: Mapping[str, Any]) -> Iterator[str]:
    """Where an imported model comes from."""
    version = f", version {found['version']}" if found.get("version") else ""
    yield f"- It came in with the MONAI bundle {found['bundle']}{version}; its training is not on record."
    yield f"- SHA-256 of the bundle's weights: `{found['weights_sha256']}`"
    for told in found.get("differences", ()):
        yield f"- At the borders of structures its masks are not quite the bundle's: {told}."
    yield f"- {TO_FILL} what do its makers say of its data, its licence and its results?"


def _results(checkpoint: Checkpoint, run: RunFolder | None) -> Iterator[str]:
    yield from ("", "## Results", "")
    rows = _figures(checkpoint, run) if run is not None else []
    if rows:
        yield "On the held-out cases of the same study, on the patients' own grids; 95 % intervals."
        yield ""
        yield from table(("figure", "value", "interval", "cases"), rows[:_MOST_FIGURES])
        assert run is not None, "figures are those of a run"
        yield from _groups(run)
        yield from _downstream(run)
        return
    metrics = checkpoint.provenance.get("metrics") or {}
    if not metrics:
        yield _unknown(checkpoint, run)
        return
    why = "The run's record is not on this disk" if run is None else "The run has not judged its cases yet"
    yield (
        f"{why}, so these are the figures of the moment when the network was kept: on the network's grid, "
        "without intervals."
    )
    yield ""
    yield from table(("figure", "value"), [(name, f"{value:.4g}") for name, value in metrics.items()])


def _unknown(checkpoint: Checkpoint, run: RunFolder | None) -> str:
    """Why there is no figure."""
    if "imported" in checkpoint.provenance:
        return "Not judged here."
    if not checkpoint.provenance.get("validation_cases"):
        return "Nothing was held out, so nothing is known."
    if run is None:
        return "The run's record is not on this disk; write the card beside it to have the figures here."
    return "The run has no figures: it has not judged its held-out cases, or no truth of them is known."


def _groups(run: RunFolder) -> Iterator[str]:
    """Figures of groups of patients, where the job names columns of its manifest."""
    rows = judge_subgroups(run, run.path / TABLE)
    if not rows:
        return
    yield from ("", "### In groups of patients", "")
    yield GROUP_NOTE
    yield ""
    yield from table(
        ("column", "group", "cases", "figure", "value", "interval"),
        [
            (column, group, num, figure, f"{e.value:.4g}", interval_text(e, ".4g"))
            if e is not None
            else (column, group, num, figure, "too few cases", "")
            for column, group, num, figure, e in rows
        ],
    )


def _downstream(run: RunFolder) -> Iterator[str]:
    """What a segmentation finds in what an enhancer makes, warnings first of all."""
    told = downstream_remarks([run, *read_children(run)])
    if told:
        yield from ("", "### What is measured on its images", "")
        yield from (
            f"- {'**Warning:** ' if t.startswith(_WARNING) else ''}{t.removeprefix(_WARNING)}" for t in told
        )


def _figures(checkpoint: Checkpoint, run: RunFolder) -> list[tuple[str, str, str, str]]:
    """Each figure with its interval and the number of cases; of segmentations per structure."""
    if checkpoint.job.get("task") == "segmentation" and (run.path / TABLE).is_file():
        summaries = summarise_structures(read_table(run.path / TABLE), _METRICS)
        return [
            (f"{metric}, {name}", f"{s.mean:.4g}", interval_text(s, ".4g"), str(s.num))
            for name, metrics in summaries.items()
            for metric, s in metrics.items()
        ]
    num = str(len(checkpoint.provenance.get("validation_cases") or ()))
    return [(name, f"{e.value:.4g}", interval_text(e, ".4g"), num) for name, e in read_estimates(run).items()]


def _limits(checkpoint: Checkpoint) -> Iterator[str]:
    job = checkpoint.job
    num = len(checkpoint.provenance.get("validation_cases") or ())
    yield from ("", "## Limits", "")
    if "imported" in checkpoint.provenance:
        yield "- Nothing is known of how well it does on your images: judge it before you use it."
    else:
        held_out = {0: "No case", 1: "Only 1 case"}.get(num, f"Only {num} cases")
        yield (
            f"- {held_out} of the study that it was trained on can tell how well it does: nothing is "
            "known of other hospitals, scanners or populations."
        )
        if num < 30:
            yield "- Few cases were held out; the intervals are wide for a reason."
    if job.get("task") == "segmentation":
        yield "- It marks what it was trained to mark in any image, also where the organ is not in the image."
    spacing = job.get("preprocessing", {}).get("spacing")
    if spacing:
        yield f"- It sees images at {' x '.join(f'{mm:g}' for mm in spacing)} mm; what is finer is lost."
    yield f"- {TO_FILL} known failures, and how they are noticed."


def _making(checkpoint: Checkpoint) -> Iterator[str]:
    made = checkpoint.provenance
    yield from ("", "## How it was made", "")
    is_ours = "imported" not in made
    settings = [
        (key, _setting(checkpoint.job, key)) for key in _CHOICES if is_ours or not key.startswith("training.")
    ]
    yield from table(("setting", "value"), [(key, value) for key, value in settings if value is not None])
    yield ""
    environment = made.get("environment") or {}
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in environment.items()) + "."
    yield "The complete configuration travels in the checkpoint."


def _setting(job: Mapping[str, Any], key: str) -> object:
    value: Any = job
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
