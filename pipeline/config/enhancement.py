"""An enhancement job: what it has beside what all jobs have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.fields import Axes, Integers, ModelField, PathField
from pipeline.config.generators import GeneratorSection
from pipeline.config.learning import LoopSection
from pipeline.config.sections import (
    CasesSection,
    PreprocessingSection,
    Section,
    SlidingSection,
    TrackingSection,
    check_mirror_axes,
)


class CorruptionSection(Section):
    """How good images are made worse, so that the truth is known; see `docs/corruption.md`."""

    name: Literal["rician_noise", "low_dose", "bias_field", "motion", "blur", "thick_slices"]
    """What happens to them."""
    severity: Annotated[int, Field(ge=1, le=5)] = 3
    """How badly, from 1 to 5."""


class EnhancementDataSection(CasesSection):
    """Which images are to be enhanced, and which show what they should look like."""

    manifest: PathField
    """The images to be enhanced (source): a folder of NIfTI files or of DICOM series, a Decathlon
    `dataset.json`, an nnU-Net raw folder or a CSV; relative to this file. Label maps are not looked at."""
    target: PathField | None = None
    """Images that show what they should look like, of whomever, in the same forms. A case of the same id is
    the truth of its source, by which validation is measured. Null takes half of the patients of `manifest`
    and degrades the other half by `corruption`."""
    corruption: CorruptionSection | None = None
    """Makes sources of the good images of `manifest`, whose truth is then known."""

    @model_validator(mode="after")
    def _check_target(self) -> EnhancementDataSection:
        if (self.target is None) == (self.corruption is None):
            raise ValueError(
                "target: give images that show what the sources should look like, or a `corruption` that "
                "makes sources of good images, and not both"
            )
        return self


class EnhancementPreprocessingSection(PreprocessingSection):
    """The deterministic way from the stored image to what the network sees, which can be undone.

    It measures a blurred copy, so that noise does not count, and clips nothing.
    """

    # What measures labelled structures is left out, and what keeps 0 in its place is added.
    normalisation: Literal["zscore", "magnitude", "window"] = "zscore"  # type: ignore[assignment]
    """`zscore`: mean 0, deviation 1 per image and channel. `magnitude`: no signal (0) to -2, what is bright
    (the 95th percentile) to 2, for MR, where noise lifts what is dark, and so the mean. `window`: `window`
    to [-1, 1]."""


class EnhancementAugmentationSection(Section):
    """Random changes of training patches.

    What interpolates or changes intensities is left out: it would change what is to be learnt.
    """

    mirror_axes: Integers = ()
    """Array axes flipped with probability 0.5."""


class EnhancementTrainingSection(LoopSection):
    """How the networks are fitted (Adam, as Zhu et al. 2017).

    The last weights are kept: without a truth nobody can say which were best.
    """

    method: Literal["cyclegan", "supervised"] = "cyclegan"
    """`cyclegan` learns from unpaired sets. `supervised` needs the truth of every source, and learns from it
    alone."""
    patch_size: Axes = (64, 64, 64)
    """Voxels per axis of a training patch, on the network's grid."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Of the generators."""
    backward_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Of the one that goes from target to source; null is the same. Where it is random, its discriminator
    alone teaches it, and it has to be slower than that."""
    discriminator_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Of the discriminators; null is that of the generators. A higher one lets them keep up with what is
    made, where both sides would else chase each other in circles (Heusel et al. 2017)."""
    constant_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the budget over which it stays; it then falls to zero in a straight line."""
    adversarial_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the discriminators' judgement (least squares) in the generators' loss."""
    source_cycle_weight: Annotated[float, Field(ge=0)] = 10.0
    """Of the distance (L1) of a source from itself after it went to the target and back. Where the target
    cannot know what the source looked like, such as its noise, a small one keeps it from being hidden
    there."""
    target_cycle_weight: Annotated[float, Field(ge=0)] = 10.0
    """Of the distance of a target from itself after it went to the source and back."""
    identity_weight: Annotated[float, Field(ge=0)] = 5.0
    """Of what a generator changes in an image that is already as it should be (L1)."""
    variation_weight: Annotated[float, Field(ge=0)] = 0.0
    """Of the total variation of what is made of sources."""
    pool_size: Annotated[int, Field(ge=0)] = 50
    """Images made earlier that a discriminator is shown besides the new ones; 0 shows new ones alone."""


class EnhancementInferenceSection(SlidingSection):
    """How full volumes are enhanced; `clinseg enhance` takes these from the checkpoint."""

    grid: Literal["input", "network"] = "input"
    """The grid of the result: the input's own, or the network's (`preprocessing.spacing`) with the input's
    order and direction of axes, as super-resolution needs."""
    intensities: Literal["input", "target"] = "input"
    """The scale of the result: the input's own, or the median of the training targets, where another contrast
    is made of unpaired images; what is learnt from pairs is in the targets' unit anyway."""
    downstream: ModelField | None = None
    """A segmentation model, by any of its names: at the end of a training it is applied to the validation
    cases before and after, and to their truth; the report warns if Dice falls. See `docs/enhancement.md`."""


class EnhancementJob(Section):
    """A training of an enhancer, complete."""

    task: Literal["enhancement"]
    """What kind of job it is."""
    data: EnhancementDataSection
    preprocessing: EnhancementPreprocessingSection = EnhancementPreprocessingSection()
    augmentation: EnhancementAugmentationSection = EnhancementAugmentationSection()
    network: GeneratorSection = GeneratorSection()
    training: EnhancementTrainingSection
    inference: EnhancementInferenceSection = EnhancementInferenceSection()
    tracking: TrackingSection = TrackingSection()

    @property
    def window_size(self) -> tuple[int, ...]:
        """Voxels per axis of a sliding window."""
        return self.inference.window_size or self.training.patch_size

    @model_validator(mode="after")
    def _check_sizes(self) -> EnhancementJob:
        dims, total = self.network.dimensions, self.network.total_stride
        for name, size in (
            ("training.patch_size", self.training.patch_size),
            ("inference.window_size", self.window_size),
        ):
            if len(size) != dims:
                raise ValueError(f"{name}: needs {dims} numbers, as network.dimensions says")
            if any(n < 2 * t or n % t for n, t in zip(size, total, strict=True)):
                raise ValueError(
                    f"{name}: each axis must be a multiple of the network's total stride {total}, at least "
                    "twice it"
                )
        has_way_back = self.training.method == "cyclegan"
        is_rician = has_way_back and self.network.noise == "rician"
        if is_rician and self.preprocessing.normalisation != "magnitude":
            raise ValueError(
                "network.noise: rician needs to know where 0 is; set preprocessing.normalisation to magnitude"
            )
        distance = self.network.slice_distance
        if distance is not None and self.preprocessing.spacing is None:
            raise ValueError(
                "network.slice_distance counts voxels of one grid for all images; set preprocessing.spacing"
            )
        if has_way_back and distance is not None and self.training.patch_size[-1] < 2 * distance:
            raise ValueError(
                f"training.patch_size: the last axis has to hold two slices that are {distance:g} voxels "
                "apart (network.slice_distance); take a larger patch"
            )
        if not has_way_back and self.inference.intensities == "target":
            raise ValueError(
                "inference.intensities: what supervised learns is the truth in the scale of its source, and "
                "undoing that gives the truth's own unit already; set it to input"
            )
        smallest = self.network.smallest_judged
        if has_way_back and min(self.training.patch_size) < smallest:
            raise ValueError(
                f"training.patch_size: each axis needs {smallest} voxels for "
                f"{self.network.discriminator_levels} discriminator levels; take a larger patch, or fewer "
                "network.discriminator_levels"
            )
        check_mirror_axes(self.augmentation.mirror_axes, dims, flips=self.inference.flips)
        return self
