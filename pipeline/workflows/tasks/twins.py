"""The enhancer behind `augmentation.from_enhancer`: found, pinned, and asked for twins of training images."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.checkpoint import Checkpoint
from pipeline.config import Job, SegmentationJob
from pipeline.data.case_images import read_case_images
from pipeline.data.cases import Case
from pipeline.data.prepared_cases import PreparedCase, add_twins
from pipeline.errors import ConfigError, Fault
from pipeline.inference.enhancer import knows_way_back, load_enhancer
from pipeline.inference.grids import on_grid
from pipeline.inference.predictor import select_device
from pipeline.progress import progress_bar
from pipeline.volume import Volume
from pipeline.workflows.runs.models import load_model, pin_model
from transforms.preprocessing import Preprocessing

_SETTING = "augmentation.from_enhancer"


def pin_twin_maker(job: Job) -> Job:
    """The job with its enhancer named for good; see `pin_model`."""
    if not isinstance(job, SegmentationJob) or not isinstance(job.augmentation.from_enhancer, str):
        return job
    section = job.augmentation.model_copy(update={"from_enhancer": pin_model(job.augmentation.from_enhancer)})
    return job.model_copy(update={"augmentation": section})


def find_twin_maker(job: SegmentationJob, num_channels: int) -> Checkpoint | None:
    """The enhancer that makes twins of images with so many channels; None if none is asked for.

    Raises:
        ConfigError: If there is no such model, or it does not fit.
        IntegrityError: If its file is damaged.
        ServiceError: If a registered model cannot be fetched.
    """
    model = job.augmentation.from_enhancer
    if model is None:
        return None
    checkpoint = load_model(str(model), uri=job.tracking.uri)
    if checkpoint.job.get("task") != "enhancement":
        message = f"{model} does not enhance images; name a model of `task: enhancement`, or leave it null"
        raise ConfigError(Fault(_SETTING, "other-task", message))
    if len(checkpoint.channels) != num_channels:
        message = f"{model} works on {len(checkpoint.channels)} channels, and the images have {num_channels}"
        raise ConfigError(Fault(_SETTING, "num-channels", message))
    if job.augmentation.enhancer_reverse and not knows_way_back(checkpoint):
        message = f"{model} goes one way only; set it to false, or name a model of method cyclegan"
        raise ConfigError(Fault("augmentation.enhancer_reverse", "no-way-back", message))
    return checkpoint


def make_twins(
    cases: Sequence[PreparedCase], checkpoint: Checkpoint, job: SegmentationJob, settings: Preprocessing
) -> list[PreparedCase]:
    """The cases with their twins, which are made once and cached by the content of image and enhancer.

    Raises:
        FaultError: If an image cannot be enhanced, or the cache not be written.
    """
    reverse = job.augmentation.enhancer_reverse
    device = select_device(job.training.device)
    enhancer = load_enhancer(checkpoint, device, reverse=reverse)

    def render(case: Case) -> list[Volume]:
        volumes = read_case_images(case, len(enhancer.channels))
        grid = volumes[0].grid
        made = enhancer.enhance(enhancer.prepare(case.id, volumes), grid)
        return [Volume(on_grid(Volume(image, made.grid), grid), grid) for image in made.images]

    with progress_bar("Making twins", len(cases)) as advance:
        return add_twins(cases, render, [checkpoint.content_hash, reverse], settings, job.data, advance)
