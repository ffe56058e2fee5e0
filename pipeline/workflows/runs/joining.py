"""One model of all networks of a cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.checkpoint import Checkpoint, Member, write_checkpoint
from pipeline.config import Job, job_to_mapping
from pipeline.environment import code_version, environment
from pipeline.tracking import Record
from pipeline.workflows.runs.models import BEST


def write_ensemble(
    record: Record,
    job: Job,
    checkpoints: Sequence[Checkpoint],
    *,
    metrics: Mapping[str, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
    calibration: dict[str, Any] | None = None,
) -> Checkpoint:
    """Makes the networks that folds kept one ensemble, and writes and records it as the run's model.

    Args:
        record: Of the cross-validation.
        job: With what was decided on its predictions.
        checkpoints: Of each fold.
        metrics: Of all folds together.
        provenance: What else is to be known of it.
        calibration: What a classifier's mean logits mean; else None.
    """
    first = checkpoints[0]
    training = {case for one in checkpoints for case in one.provenance["training_cases"]}
    ensemble = Checkpoint(
        weights={},
        job=job_to_mapping(job),
        labels=first.labels,
        structures=first.structures,
        channels=first.channels,
        intensity=None,
        provenance={
            "run": record.name,
            "epoch": None,
            "metrics": dict(metrics or {}),
            "data_hash": first.provenance["data_hash"],
            "training_cases": sorted(training),
            "validation_cases": [],
            "environment": environment() | {"code": code_version() or "unknown"},
            **(provenance or {}),
        },
        calibration=calibration,
        members=tuple(Member(one.weights, one.intensity, one.provenance) for one in checkpoints),
        segmenter=first.segmenter,
    )
    write_checkpoint(record.folder / BEST, ensemble)
    record.log_artifact(record.folder / BEST, "model")
    return ensemble
