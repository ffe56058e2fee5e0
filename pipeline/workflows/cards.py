"""`clinseg card`: what there is to know of a model, in Markdown, with gaps where only a person knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pipeline.checkpoint import Checkpoint
from pipeline.errors import ConfigError, Fault
from pipeline.files import write_text
from pipeline.inference.predictor import load_contract
from pipeline.tracking import RunFolder, find_run
from pipeline.workflows.papers.card_results import num_held_out, tell_results
from pipeline.workflows.papers.markdown import table
from pipeline.workflows.runs.models import load_model

TO_FILL: Final = "**To be filled in by a person:**"
_CHOICES: Final = (
    "preprocessing.orientation",
    "preprocessing.spacing",
    "preprocessing.size",
    "preprocessing.region",
    "preprocessing.normalisation",
    "preprocessing.window",
    "network.name",
    "network.features",
    "training.patch_size",
    "inference.window_size",
    "inference.overlap",
    "inference.flips",
    "inference.operating_point",
    "inference.coverage",
    "inference.largest_component",
    "training.epochs",
    "training.minutes",
    "training.optimizer",
    "training.learning_rate",
    "training.seed",
    "training.start_from",
)


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
        tell_results(checkpoint, run),
        _limits(checkpoint),
        _making(checkpoint),
        extra,
    ]
    return "\n".join(line for part in parts for line in part) + "\n"


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
    num_training, num_validation = len(made.get("training_cases") or ()), num_held_out(checkpoint)
    yield from ("", "## Data", "")
    if "imported" in made:
        yield from _origin(made["imported"])
        return
    how = "each held out from one of its networks" if checkpoint.members else "held out"
    yield f"- Trained on {num_training} cases; {num_validation} were {how} to judge it."
    if made.get("data_hash"):
        yield f"- SHA-256 of the data that it saw: `{made['data_hash']}`"
    folds = checkpoint.job.get("data", {}).get("fold")
    yield f"- Held-out fold: {folds}.{_tell_patients(checkpoint)}"
    yield f"- {TO_FILL} where do they come from, who drew the references, under which licence and consent?"
    yield f"- {TO_FILL} whom do they represent, and whom not (sex, age, ethnicity, disease, scanner)?"


def _tell_patients(checkpoint: Checkpoint) -> str:
    """Whether folds keep people apart, which only a manifest that names them can do."""
    made = (checkpoint.provenance, *(member.provenance for member in checkpoint.members))
    known = {one["names_patients"] for one in made if "names_patients" in one}
    if not known:  # it was trained before this was noted
        return ""
    if any(known):
        return " Folds are made by patient: no patient is on both sides."
    return (
        " The manifest names no patients, so every case counted as one: cases of one person may be on both "
        "sides."
    )


def _origin(found: Mapping[str, Any]) -> Iterator[str]:
    """Where an imported model comes from."""
    version = f", version {found['version']}" if found.get("version") else ""
    yield f"- It came in with the MONAI bundle {found['bundle']}{version}; its training is not on record."
    yield f"- SHA-256 of the bundle's weights: `{found['weights_sha256']}`"
    for told in found.get("differences", ()):
        yield f"- At the borders of structures its masks are not quite the bundle's: {told}."
    yield f"- {TO_FILL} what do its makers say of its data, its licence and its results?"


def _limits(checkpoint: Checkpoint) -> Iterator[str]:
    job = checkpoint.job
    num = num_held_out(checkpoint)
    yield from ("", "## Limits", "")
    if "imported" in checkpoint.provenance:
        yield "- Nothing is known of how well it does on your images: judge it before you use it."
    else:
        held_out = {0: "No case", 1: "Only 1 case"}.get(num, f"Only {num} cases")
        yield (
            f"- {held_out} of the study that it was trained on can tell how well it does: nothing is "
            "known of other hospitals, scanners or populations."
        )
        if 0 < num < 30:
            yield "- Few cases were held out; the intervals are wide for a reason."
    if job.get("task") == "segmentation":
        yield "- It marks what it was trained to mark in any image, also where the organ is not in the image."
    if job.get("task") == "classification":
        yield from _calibration_limits(checkpoint)
    spacing = job.get("preprocessing", {}).get("spacing")
    if spacing:
        yield f"- It sees images at {' x '.join(f'{mm:g}' for mm in spacing)} mm; what is finer is lost."
    yield f"- {TO_FILL} known failures, and how they are noticed."


def _calibration_limits(checkpoint: Checkpoint) -> Iterator[str]:
    """What stands between a classifier's probabilities and its answers."""
    known = checkpoint.calibration
    if not known or not known["num_cases"]:
        yield (
            "- Its probabilities are not calibrated, and it calls for no review: no case was held out to fit "
            "either on."
        )
        return
    names = tuple(checkpoint.structures)[-len(known["thresholds"]) :]
    thresholds = zip(names, known["thresholds"], strict=True) if known["thresholds"] else ()
    for name, threshold in thresholds:
        yield f"- It answers {name} from a probability of {threshold:.3g} on."
    if checkpoint.members:
        yield (
            "- Calibration and operating point were measured on single networks, each on cases that it had "
            f"not seen, and are applied to the mean of all {len(checkpoint.members)}. Its figures differ: "
            "probabilities tend to be less extreme than they could be, sensitivity tends to be higher than "
            "measured, and specificity may be lower. Judge it on cases that none of them saw."
        )


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
