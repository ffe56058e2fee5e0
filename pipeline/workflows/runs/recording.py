"""What every run tells of itself, in the same words for all tasks; docs/record.md is its page."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from pipeline.checkpoint import Checkpoint
from pipeline.config import Job, job_parameters
from pipeline.data.cases import Case
from pipeline.environment import environment
from pipeline.inference.metric_table import CaseMetrics, summarise_structures
from pipeline.precision import training_dtype
from pipeline.statistics import Estimate
from pipeline.tracking import Record, RunFolder, read_metrics
from pipeline.training.loop import Ending
from pipeline.workflows.runs.resuming import CONFIG
from pipeline.workflows.tasks.columns import AbstractMaterial

ENDING = "clinseg.ending"
"""Tag that says how a training ended."""
_DIGEST_LENGTH: Final = 36  # all that MLflow takes
_BEST: Final = "best/"
_LOW: Final = "best_low/"
_HIGH: Final = "best_high/"
_EVERY_EPOCH: Final = "training/epoch_seconds"
FIRST: Final = (
    "network.name",
    "network.features",
    "preprocessing.spacing",
    "preprocessing.size",
    "preprocessing.normalisation",
    "training.method",
    "training.loss",
    "training.optimizer",
    "training.learning_rate",
    "training.batch_size",
    "training.patch_size",
    "training.epochs",
    "training.minutes",
    "training.steps_per_epoch",
    "training.seed",
    "training.start_from",
    "data.fold",
)
"""The settings to look at first, of those that a task has."""


def describe_job(record: Record, job: Job) -> None:
    """Records the settings, and with what they are carried out."""
    parameters = job_parameters(job)  # MLflow shows them in the order in which it got them
    record.log_parameters({name: parameters[name] for name in FIRST if name in parameters} | parameters)
    record.set_tags(
        {
            "clinseg.fold": str(job.data.fold),
            "clinseg.data": data_name(job.data.manifest),
            **{f"environment.{name}": version for name, version in environment().items()},
        }
    )
    record.log_artifact(record.folder / CONFIG)


def describe_material(
    record: Record, job: Job, material: AbstractMaterial, device: torch.device, num_processes: int
) -> None:
    """Records on what a network is trained and judged, and where."""
    if material.segmenter is not None:
        record.set_tags({"clinseg.segmenter.sha256": str(material.segmenter.content_hash)})
    if material.enhancer_hash is not None:
        record.set_tags({"clinseg.enhancer.sha256": material.enhancer_hash})
    precision = training_dtype(device, mixed=job.training.mixed_precision)
    record.set_tags(
        {
            "clinseg.data_hash": material.data_hash,
            "clinseg.device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "clinseg.precision": str(precision).removeprefix("torch."),
            "clinseg.num_processes": str(num_processes),
            "clinseg.num_training_cases": str(len(material.split.training)),
            "clinseg.num_validation_cases": str(len(material.split.validation)),
        }
    )
    for context, cases in (("training", material.split.training), ("validation", material.split.validation)):
        _describe_cases(record, job, material.data_hash, context, cases)
    record.log_artifact(material.write_split(record.folder))


def describe_whole(record: Record, job: Job, data_hash: str) -> None:
    """Records all cases of a cross-validation, whose folds divide them each in its own way."""
    record.set_tags({"clinseg.data_hash": data_hash})
    name, source = data_name(job.data.manifest), str(job.data.manifest)
    record.log_dataset(name, data_hash[:_DIGEST_LENGTH], "cross-validation", source)


def record_best(record: Record, figures: Mapping[str, Estimate], step: int) -> None:
    """Records what a run is judged by: each figure and the ends of its 95 % interval, where they are known.

    Args:
        record: Where it goes.
        figures: By name, such as `dice/mean`.
        step: The epoch of the kept checkpoint; of a cross-validation the number of its folds.
    """
    values = {_BEST + name: figure.value for name, figure in figures.items()}
    for name, figure in figures.items():
        ends = {_LOW + name: figure.low, _HIGH + name: figure.high}
        values |= {end: value for end, value in ends.items() if math.isfinite(value)}
    record.log_metrics(values, step=step)


def read_estimates(run: RunFolder) -> dict[str, Estimate]:
    """Figures with their intervals, as they were recorded last.

    A run without the end of any interval was judged on one case; in others, figures without are left out.
    """
    last = {name: points[-1][1] for name, points in read_metrics(run).items()}
    unknown = {} if any(name.startswith(_LOW) for name in last) else {"low": -math.inf, "high": math.inf}
    found = {}
    for name in (best.removeprefix(_BEST) for best in last if best.startswith(_BEST)):
        ends = {end: last[key] for end, key in (("low", _LOW + name), ("high", _HIGH + name)) if key in last}
        if len(ends := ends or unknown) == 2:
            found[name] = Estimate(last[_BEST + name], **ends)
    return found


def kept_epoch(record: Record, checkpoint: Checkpoint) -> int:
    """The epoch whose weights were kept: the one that was chosen, else the last."""
    chosen = checkpoint.provenance["epoch"]
    return int(chosen or max((step for step, _ in read_metrics(record.run).get(_EVERY_EPOCH, [])), default=0))


def record_ending(record: Record, ending: Ending) -> None:
    """Records why a training ended that ended well."""
    record.set_tags({ENDING: ending})


def record_best_masks(record: Record, rows: Sequence[CaseMetrics], step: int) -> None:
    """The same of label maps: means over cases as `<metric>/<structure>`, Dice first and with its interval.

    Intervals of the other metrics would be two more charts in MLflow for each of many; reports have them.
    """
    figures = {
        f"{metric}/{structure}": summary.estimate
        for structure, metrics in summarise_structures(rows).items()
        for metric, summary in metrics.items()
    }
    record_best(record, {name: figure for name, figure in figures.items() if name.startswith("dice/")}, step)
    record.log_metrics({_BEST + name: figure.value for name, figure in figures.items()}, step=step)


def data_name(manifest: Path) -> str:
    """What people call data: by their file or folder, or by that of a `dataset.json`."""
    path = manifest.absolute().parent if manifest.name == "dataset.json" else manifest
    return path.name.partition(".")[0] or "data"


def _describe_cases(record: Record, job: Job, data_hash: str, context: str, cases: Sequence[Case]) -> None:
    """One side of a split; its digest changes with the data and with who belongs to it."""
    if not cases:
        return
    members = "\n".join(sorted(case.id for case in cases))
    digest = hashlib.sha256(f"{data_hash}\n{members}".encode()).hexdigest()[:_DIGEST_LENGTH]
    name, source = data_name(job.data.manifest), str(job.data.manifest)
    record.log_dataset(name, digest, context, source, len(cases))
