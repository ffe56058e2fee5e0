"""What a training of a classifier works on: the study, who validates, and every image at its size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from pipeline.config import ClassificationJob
from pipeline.data.class_images import ClassImage, prepare_class_images
from pipeline.data.class_study import ClassStudy, check_split, read_class_study
from pipeline.data.datasets import hash_contents
from pipeline.data.folds import Split, split_cases
from pipeline.errors import ConfigError, Fault
from pipeline.networks import build_classifier
from pipeline.progress import progress_bar
from pipeline.workflows.columns import AbstractMaterial
from transforms.preprocessing import IntensityStatistics


@dataclass(frozen=True)
class ClassMaterial(AbstractMaterial):
    """Everything about the data of a job; see `AbstractMaterial`.

    Attributes:
        study: Cases, classes and channels as declared.
        split: Who trains and who validates.
        training: Prepared images to train on.
        validation: Prepared images held out, possibly none.
        data_hash: One hash of the content of all of them and of their classes.
        statistics: None are needed.
    """

    study: ClassStudy
    split: Split
    training: list[ClassImage]
    validation: list[ClassImage]
    data_hash: str
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
        """Names of the image channels."""
        return self.study.channels

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


def load_class_material(job: ClassificationJob) -> ClassMaterial:
    """Reads the manifest, divides the cases and prepares every one of them.

    Raises:
        FaultError: With all faults of manifest and cases together.
    """
    study = read_class_study(job.data)
    check_network_size(job)
    split = split_cases(study.cases, job.data, job.training.seed)
    check_split(study, split)
    cases = [*split.training, *split.validation]
    with progress_bar("Preparing cases", len(cases)) as advance:
        images = prepare_class_images(cases, study, job.preprocessing, job.data, advance)
    lines = [" ".join((one.case.id, one.content_hash, *(one.case.classes or ()))) for one in images]
    num_training = len(split.training)
    return ClassMaterial(study, split, images[:num_training], images[num_training:], hash_contents(lines))
