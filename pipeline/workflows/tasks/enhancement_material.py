"""What a training of an enhancer works on: sources, targets, and every image on the network's grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.config import EnhancementJob
from pipeline.data.case_images import distance_faults, slice_faults
from pipeline.data.enhancement_images import (
    EnhancementImage,
    prepare_chain,
    prepare_enhancement_images,
)
from pipeline.data.enhancement_study import (
    EnhancementStudy,
    as_split,
    find_truths,
    read_enhancement_study,
    split_enhancement,
)
from pipeline.data.folds import Split
from pipeline.data.prepared_cases import hash_contents, hash_files
from pipeline.errors import InputError
from pipeline.networks.slices import thicken_slices
from pipeline.progress import progress_bar
from pipeline.workflows.tasks.columns import AbstractMaterial
from transforms.enhancement import Scale, measure_scale


@dataclass(frozen=True)
class EnhancementMaterial(AbstractMaterial):
    """Everything about the data of a job; see `AbstractMaterial`.

    Attributes:
        study: Cases as declared.
        split: Who trains and who validates.
        statistics: Median scale of the training sources' channels, then of the targets'.
        sources: Prepared images to train on.
        targets: As well; the sources themselves where the truth of each is learnt from.
        validation: Prepared sources held out, possibly none.
        data_hash: One hash of the content of all of them.
    """

    study: EnhancementStudy
    split: Split
    statistics: tuple[Scale, ...]
    sources: list[EnhancementImage]
    targets: list[EnhancementImage]
    validation: list[EnhancementImage]
    data_hash: str

    @property
    def labels(self) -> dict[str, int]:
        """There are none."""
        return {}

    @property
    def structures(self) -> Mapping[str, tuple[int, ...]]:
        """There are none."""
        return {}

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the image channels."""
        return self.study.channels

    @property
    def cache_bytes(self) -> int:
        """What the prepared images and their truths take."""
        images = {id(image): image for image in (*self.sources, *self.targets, *self.validation)}
        return sum(
            image.image.nbytes + (image.truth.nbytes if image.truth is not None else 0)
            for image in images.values()
        )

    @property
    def result_bytes(self) -> int:
        """Input, result and change of every validation case in float32, uncompressed."""
        return 2**20 + 3 * sum(image.image.nbytes for image in self.validation)

    @property
    def validation_share(self) -> float:
        """By voxels."""
        sizes = [image.image[0].numel() for image in self.validation if image.can_judge]
        return sizes[0] / sum(sizes) if sizes else 0.0

    def with_one_validation(self) -> EnhancementMaterial:
        """The same with the first validation case alone whose truth can judge."""
        known = [image for image in self.validation if image.can_judge]
        return replace(self, validation=known[:1])


def load_enhancement_material(job: EnhancementJob) -> EnhancementMaterial:
    """Reads the manifests, divides the cases and prepares every one of them.

    Raises:
        FaultError: With all faults of manifests and cases together.
    """
    study = read_enhancement_study(job.data)
    roles = split_enhancement(study, job.data, job.training)
    truths = find_truths(study, job.data)
    is_paired = job.training.method == "supervised"
    with_truth = [(case, truths.get(case.id)) for case in roles.validation]
    with_truth += [(case, truths[case.id] if is_paired else None) for case in roles.sources]
    plain = [] if is_paired else [(case, None) for case in roles.targets]
    num_channels = len(study.channels)
    with progress_bar("Preparing cases", len(with_truth) + len(plain)) as advance:
        known = prepare_enhancement_images(with_truth, num_channels, job, job.data.corruption, advance)
        targets = prepare_enhancement_images(plain, num_channels, job, None, advance)
    dimensions, orientation = job.network.dimensions, job.preprocessing.orientation
    faults = [
        fault
        for images in (known, targets)  # of which a source and a target may have one name
        for fault in slice_faults(dimensions, orientation, {i.case.id: i.image.shape[1:] for i in images})
    ]
    faults += distance_faults(job, {image.case.id: image.slice_mm for image in known})
    if faults:
        raise InputError(dict.fromkeys(faults))
    num_held_out = len(roles.validation)
    validation, sources = known[:num_held_out], known[num_held_out:]
    targets = sources if is_paired else [_scale_as_source(image, job) for image in targets]
    statistics = (*_median_scales(sources), *_median_scales(targets))
    if job.inference.intensities == "target":
        validation = [replace(image, made_scales=statistics[num_channels:]) for image in validation]
    # Of all cases, whatever a fold makes of them: folds of one study have one hash.
    lines = [f"source {case.id} {hash_files(case)}" for case in study.sources]
    lines += [f"target {case.id} {hash_files(case)}" for case in study.targets]
    return EnhancementMaterial(
        study, as_split(roles), statistics, sources, targets, validation, hash_contents(lines)
    )


def _scale_as_source(image: EnhancementImage, job: EnhancementJob) -> EnhancementImage:
    """A target, scaled as the sources are.

    Thick slices have less contrast, and are scaled by what is left of it (4 % less in the hippocampus): a
    discriminator would tell targets that are made thick by that alone, and find thinner slices likelier.
    """
    distance = job.network.slice_distance
    if distance is None:
        return image
    restored = torch.stack([c * s.deviation + s.mean for c, s in zip(image.image, image.scales, strict=True)])
    chain = prepare_chain(job)
    scales = tuple(measure_scale(channel, chain) for channel in thicken_slices(restored[None], distance)[0])
    scaled = torch.stack([(c - s.mean) / s.deviation for c, s in zip(restored, scales, strict=True)])
    return replace(image, image=scaled, scales=scales)


def _median_scales(images: Sequence[EnhancementImage]) -> tuple[Scale, ...]:
    """Of each channel."""
    scales = np.array([[(scale.mean, scale.deviation) for scale in image.scales] for image in images])
    return tuple(Scale(float(mean), float(deviation)) for mean, deviation in np.median(scales, axis=0))
