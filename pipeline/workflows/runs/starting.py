"""What a training starts from: another model, matched to the network of the job before any case is read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from pipeline.checkpoint import Checkpoint, is_checkpoint, read_checkpoint, write_checkpoint
from pipeline.config import (
    ClassificationJob,
    EnhancementJob,
    Job,
    job_from_mapping,
    job_to_mapping,
)
from pipeline.errors import ConfigError, Fault
from pipeline.files import sha256_of, write_json
from pipeline.networks import Classifier
from pipeline.networks.foreign import foreign_source, read_weights
from pipeline.networks.pretrained import ENCODER, Source, Transfer, head_kernels, load_pretrained
from pipeline.tracking import Record, RunFolder
from pipeline.workflows.runs.matching import RECEIVERS, FittedJob, answers_of, match_inputs, match_outputs
from pipeline.workflows.runs.models import LAST, load_model, pin_model

START: Final = Path("checkpoints/start.safetensors")
_FOREIGN: Final = "foreign"
_WHOLE: Final = "network."
"""What the names of the weights of MONAI's segmentation networks begin with; they have no encoder apart."""


@dataclass(frozen=True)
class Start:
    """A model that a training starts from.

    Attributes:
        model: What the job calls it.
        checkpoint: The model.
        source: Its weights, and which of its inputs and outputs are those of the job.
        transfer: What becomes of every tensor.
        labels: For each output of the job's network, whether the model's row for it is taken over.
        differences: Settings that prepare images otherwise than those the model was trained on.
    """

    model: str
    checkpoint: Checkpoint
    source: Source
    transfer: Transfer
    labels: dict[str, bool]
    differences: tuple[str, ...]

    def __str__(self) -> str:
        """One line for people, and one more where images are prepared otherwise."""
        told = f"from {self.model}: {self.transfer}"
        if self.differences:
            told += f"\nwarning: its images were prepared otherwise: {', '.join(self.differences)}"
        return told


def pin_start(job: Job) -> Job:
    """The job with the model it starts from, or is judged by, named for good; see `pin_model`."""
    if isinstance(job, EnhancementJob) and isinstance(job.inference.downstream, str):
        measuring = job.inference.model_copy(update={"downstream": pin_model(job.inference.downstream)})
        return job.model_copy(update={"inference": measuring})
    if isinstance(job, EnhancementJob) or not isinstance(job.training.start_from, str):
        return job
    section = job.training.model_copy(update={"start_from": pin_model(job.training.start_from)})
    return job.model_copy(update={"training": section})


def find_start(job: Job, run: RunFolder | None = None) -> Start | None:
    """The model that `job` starts from; None if it starts from scratch or goes on from a saved state.

    Args:
        job: Its manifest is read, its cases are not.
        run: The run to go on with, which keeps a copy of its model; None for a new one.

    Raises:
        ConfigError: If there is no such model, nothing of it fits, or a frozen encoder would be untrained.
        IntegrityError: If its file is damaged.
        ServiceError: If a registered model cannot be fetched.
    """
    if isinstance(job, EnhancementJob):
        return None  # it has nothing to start from
    model = job.training.start_from
    if model is None or (run is not None and (run.path / LAST).is_file()):
        return None
    checkpoint = _load(job, model) if run is None else read_checkpoint(run.path / START)
    if checkpoint.members:
        message = (
            f"{model} is the ensemble of a cross-validation; name one of its folds, such as "
            f"{checkpoint.provenance.get('run')}-fold0"
        )
        raise ConfigError(Fault("training.start_from", "model-is-ensemble", message))
    start = _match(job, str(model), checkpoint)
    _check(job, start)
    return start


def _load(job: FittedJob, model: Path | str) -> Checkpoint:
    """The model; foreign weights for a classifier in the form of a checkpoint that says so."""
    if not isinstance(job, ClassificationJob) or not isinstance(model, Path) or is_checkpoint(model):
        return load_model(str(model), uri=job.tracking.uri)
    return Checkpoint(
        weights=read_weights(model),
        job=job_to_mapping(job),
        labels={"unknown": 0},
        structures={"unknown": (0,)},
        channels=("unknown",),
        intensity=None,
        provenance={"run": None, _FOREIGN: True},
        content_hash=sha256_of(model),
    )


def write_start(record: Record, start: Start) -> None:
    """Puts a copy of the model into the run's folder, and the list of what is taken from it.

    From then on the run needs the model's own file no more.
    """
    write_checkpoint(record.folder / START, start.checkpoint)
    content = {
        "model": start.model,
        "sha256": start.checkpoint.content_hash,
        "run": start.checkpoint.provenance.get("run"),
        "labels": start.labels,
        "differences": start.differences,
        **asdict(start.transfer),
    }
    path = record.folder / "start_from.json"
    write_json(path, content)
    record.log_artifact(path)
    record.set_tags({"clinseg.start_from.sha256": str(start.checkpoint.content_hash)})


def _match(job: FittedJob, model: str, checkpoint: Checkpoint) -> Start:
    receiver = RECEIVERS[job.task](job)
    if checkpoint.provenance.get(_FOREIGN):
        assert isinstance(receiver.network, Classifier)
        source = foreign_source(checkpoint.weights, receiver.network)
        transfer = load_pretrained(receiver.network, source)
        labels = dict.fromkeys(receiver.answers.names, False)
        return Start(model, replace(checkpoint, weights=dict(source.weights)), source, transfer, labels, ())
    former = job_from_mapping(checkpoint.job)
    if isinstance(former, EnhancementJob):
        message = f"{model} is an enhancer; name a segmentation or classification model, or leave it null"
        raise ConfigError(Fault("training.start_from", "other-task", message))
    outputs = match_outputs(receiver.answers, answers_of(former, checkpoint))
    source = Source(checkpoint.weights, match_inputs(receiver.channels, checkpoint.channels), outputs)
    transfer = load_pretrained(receiver.network, source)
    is_head_taken = not head_kernels(receiver.network).isdisjoint({*transfer.loaded, *transfer.adapted})
    taken = [is_head_taken and output is not None for output in outputs]
    return Start(
        model=model,
        checkpoint=checkpoint,
        source=source,
        transfer=transfer,
        labels=dict(zip(receiver.answers.names, taken, strict=True)),
        differences=_differences(job, former),
    )


def _differences(job: FittedJob, former: FittedJob) -> tuple[str, ...]:
    then, now = (one.preprocessing.model_dump(mode="json") for one in (former, job))
    return tuple(
        f"preprocessing.{name} was {json.dumps(then[name])} and is {json.dumps(now[name])}"
        for name in now
        if name in then and then[name] != now[name]
    )


def _check(job: FittedJob, start: Start) -> None:
    transfer, weights = start.transfer, start.checkpoint.weights
    taken = [name for name in (*transfer.loaded, *transfer.adapted) if name.startswith((ENCODER, _WHOLE))]
    if not any(weights[name].ndim > 2 for name in taken):
        message = (
            f"no kernel of {start.model}'s encoder has the shape of one of this job's; take over the "
            f"model's `network` section, or train from scratch (`start_from: null`)"
        )
        raise ConfigError(Fault("training.start_from", "model-unlike", message))
    new = [name for name in transfer.new if name.startswith(ENCODER)]
    if job.training.freeze_encoder and new:
        more = f" and {len(new) - 3} more" if len(new) > 3 else ""
        message = (
            f"{start.model} has no {', '.join(new[:3])}{more}, and what was never trained shall not be "
            "frozen; take over the model's `network` section, or set it to 0"
        )
        raise ConfigError(Fault("training.freeze_encoder", "frozen-untrained", message))
