"""What a training of a classifier works on: the study, who validates, and every image at its size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from pipeline.checkpoint import Checkpoint
from pipeline.config import ClassificationJob, ClassificationPreprocessingSection
from pipeline.data.class_images import ClassImage, prepare_class_images
from pipeline.data.class_study import ClassStudy, check_split, read_class_study
from pipeline.data.folds import Split, split_cases
from pipeline.data.prepared_cases import hash_contents
from pipeline.errors import ConfigError, Fault
from pipeline.inference.predictor import select_device
from pipeline.inference.regions import build_regions
from pipeline.networks import build_classifier
from pipeline.progress import progress_bar
from pipeline.tracking import RunFolder
from pipeline.workflows.tasks.columns import AbstractMaterial
from pipeline.workflows.tasks.regions import find_segmenter
from transforms.preprocessing import IntensityStatistics


@dataclass(frozen=True)
class ClassMaterial(AbstractMaterial):
    """Everything about the data of a job; see `AbstractMaterial`.

    Attributes:
        study: Cases, classes and channels as declared.
        preprocessing: How images come to what the network sees.
        split: Who trains and who validates.
        training: Prepared images to train on.
        validation: Prepared images held out, possibly none.
        data_hash: One hash of the content of all of them, of their classes and of the segmenter.
        segmenter: Finds the region that is looked at, if a model does.
        statistics: None are needed.
    """

    study: ClassStudy
    preprocessing: ClassificationPreprocessingSection
    split: Split
    training: list[ClassImage]
    validation: list[ClassImage]
    data_hash: str
    segmenter: Checkpoint | None = None
    statistics: tuple[IntensityStatistics, ...] = ()

    @property
    def labels(self) -> dict[str, int]:
        """The number of each class."""
        return {name: number for number, name in enumerate(self.study.classes)}

    @property
    def structures(self) -> Mapping[str, tuple[int, ...]]:
        """The number of the class that each output stands for."""
        return {name: (number,) for number, name in enumerate(self.study.classes)}

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the network's input channels: those of the image, and the region if it is shown."""
        return self.preprocessing.seen_channels(self.study.channels)

    @property
    def cache_bytes(self) -> int:
        """What the images take that are cached."""
        own = (*self.training, *self.validation)
        return sum(image.image.nbytes for image in own if image.case.row is None)

    @property
    def result_bytes(self) -> int:
        """A line of a table for every case, and figures."""
        return 2**20 + 1000 * len(self.validation)

    @property
    def validation_share(self) -> float:
        """By number of cases."""
        return 1 / len(self.validation) if self.validation else 0.0

    def with_one_validation(self) -> ClassMaterial:
        """The same with the first validation case alone."""
        return replace(self, validation=self.validation[:1])


def check_network_size(job: ClassificationJob) -> None:
    """Raises a ConfigError if the network cannot see images of that size."""
    with torch.device("meta"):
        network = build_classifier(job.network, 1, 2)
    try:
        network.check_size(job.preprocessing.size)
    except ValueError as error:
        message = f"{error}; take a larger size, or fewer levels"
        raise ConfigError(Fault("preprocessing.size", "too-small", message)) from error


def load_class_material(job: ClassificationJob, run: RunFolder | None = None) -> ClassMaterial:
    """Reads the manifest, divides the cases and prepares every one of them.

    Args:
        job: What is trained.
        run: The run to go on with, which keeps the segmenter that it was begun with; None for a new one.

    Raises:
        FaultError: With all faults of manifest and cases together.
    """
    study = read_class_study(job.data)
    check_network_size(job)
    split = split_cases(study.cases, job.data)
    check_split(study, split)
    segmenter = find_segmenter(job, run)
    device = select_device(job.training.device)
    regions = build_regions(job.data, segmenter, len(study.channels), device)
    cases = [*split.training, *split.validation]
    with progress_bar("Preparing cases", len(cases)) as advance:
        images = prepare_class_images(cases, study, job.preprocessing, job.data, regions, advance)
    lines = [" ".join((one.case.id, one.content_hash, *(one.case.classes or ()))) for one in images]
    if segmenter is not None:
        lines.append(f"segmenter {segmenter.content_hash}")
    num_training = len(split.training)
    return ClassMaterial(
        study=study,
        preprocessing=job.preprocessing,
        split=split,
        training=images[:num_training],
        validation=images[num_training:],
        data_hash=hash_contents(lines),
        segmenter=segmenter,
    )
