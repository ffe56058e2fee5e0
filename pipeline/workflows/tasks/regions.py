"""The segmentation model behind `data.region_from`: found, pinned, and kept with the classifier."""

from __future__ import annotations

from pipeline.checkpoint import Checkpoint, read_checkpoint
from pipeline.config import LABEL_MAP, ClassificationJob, Job
from pipeline.tracking import RunFolder
from pipeline.workflows.runs.models import LAST, load_model, pin_model


def pin_region(job: Job) -> Job:
    """The job with its segmentation model named for good; see `pin_model`."""
    if not isinstance(job, ClassificationJob) or not isinstance(job.data.region_from, str):
        return job
    model = pin_model(job.data.region_from)
    return job.model_copy(update={"data": job.data.model_copy(update={"region_from": model})})


def find_segmenter(job: ClassificationJob, run: RunFolder | None = None) -> Checkpoint | None:
    """The model that finds the region; None if label maps tell it, or the whole image counts.

    Args:
        job: Names it.
        run: The run to go on with: what it saved holds the model that it was begun with.

    Raises:
        ConfigError: If there is no such model.
        IntegrityError: If its file is damaged.
        ServiceError: If a registered model cannot be fetched.
    """
    model = job.data.region_from
    if model is None or model == LABEL_MAP:
        return None
    if run is not None and (run.path / LAST).is_file():
        return read_checkpoint(run.path / LAST).segmenter
    return load_model(str(model), uri=job.tracking.uri)
