"""A classification job: what it has beside what all jobs have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from pipeline.config.fields import Axes, ModelField, Names, PathField, Probability, Structures
from pipeline.config.learning import FittingSection, LevelsSection
from pipeline.config.sections import (
    AugmentationSection,
    CasesSection,
    PreprocessingSection,
    Section,
    TrackingSection,
    check_mirror_axes,
)

LABEL_MAP: Final = "label_map"
"""What `data.region_from` says where label maps of the manifest tell the region."""
REGION: Final = "region"
"""Name of the channel that shows it."""


class ClassificationDataSection(CasesSection):
    """Which images there are, what class each is, and how they are divided."""

    manifest: PathField
    """An `.npz` in MedMNIST's form, a folder with a subfolder per class, or a CSV with the column `class`;
    relative to this file. See `docs/classification.md`."""
    subgroups: Names = ()
    """Columns of a CSV manifest by whose groups `clinseg card` tells figures, such as `[sex, scanner]`;
    nothing else of the manifest goes with a model. Numbers are divided into quarters of the cases."""
    classes: Names | None = None
    """Names of the classes, in the order of the network's outputs; null takes the manifest's. Of two, the
    second is the one that is looked for (positive)."""
    multi_label: bool = False
    """Whether an image can be of several classes, or of none: one sigmoid output per class."""
    split: Literal["given", "new"] = "given"
    """`given`: what the manifest keeps for validation (an `.npz`'s `val_images`) is fold 0, or its column
    `fold` counts. `new`: divide all cases into `num_folds` folds."""
    region_from: ModelField | None = None
    """Where the organ lies that is to be classified: a segmentation model, named as in `training.start_from`,
    which then travels with the classifier; or `label_map`, the column `label` of the CSV. Null: the whole
    image. See `docs/classification.md`."""
    region_labels: Structures | None = None
    """What makes up the region: names of the model's structures, or values in the label maps; null takes
    everything but the background."""

    @model_validator(mode="after")
    def _check_region(self) -> ClassificationDataSection:
        if self.region_labels is None:
            return self
        if self.region_from is None:
            raise ValueError("region_labels: there is no region; give `region_from`, or leave it out")
        kind, told = (int, "values") if self.region_from == LABEL_MAP else (str, "names of structures")
        if not all(isinstance(label, kind) for label in self.region_labels):
            raise ValueError(f"region_labels: a region from {self.region_from} is told by {told}")
        return self


class ClassificationPreprocessingSection(PreprocessingSection):
    """The deterministic way from the stored image to what the network sees."""

    size: Axes
    """Voxels per axis that the network sees, after orientation and spacing."""
    fit: Literal["resize", "crop"] = "resize"
    """`resize`: the whole image is resampled to `size`. `crop`: its middle is cut out, or padded with 0."""
    region: Literal["crop", "channel", "both"] | None = None
    """How the region of `data.region_from` is used. `crop`: of the image only a box round it is brought to
    `size`. `channel`: it is shown beside the image, as 1 within and 0 elsewhere. `both` does both."""
    region_margin: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Millimetres that the box is larger than the region on every side, as far as the image goes."""

    @property
    def crops(self) -> bool:
        """Whether only a box round the region is seen."""
        return self.region in ("crop", "both")

    @property
    def shows_region(self) -> bool:
        """Whether the region is a channel of its own, the last one."""
        return self.region in ("channel", "both")

    def seen_channels(self, channels: Sequence[str]) -> tuple[str, ...]:
        """Names of the network's input channels, of those of the image."""
        return (*channels, *([REGION] if self.shows_region else []))

    @model_validator(mode="after")
    def _check_margin(self) -> ClassificationPreprocessingSection:
        if self.region_margin and not self.crops:
            raise ValueError("region_margin: nothing is cropped; set it to 0, or `region` to crop or both")
        return self

    @model_validator(mode="after")
    def _check_normalisation(self) -> ClassificationPreprocessingSection:
        if self.normalisation == "dataset":
            raise ValueError("normalisation: `dataset` measures labelled structures; take zscore or window")
        return self


class ClassifierSection(LevelsSection):
    """The network's shape. What follows `name` and `dimensions` is said of `cnn_classifier` alone."""

    name: Literal["cnn_classifier", "resnet18", "resnet50", "densenet121", "efficientnet_b0"] = (
        "cnn_classifier"
    )
    """Ours, or one of MONAI's; see `docs/classification.md`."""
    squeeze_excitation: bool = False
    """Weight the channels of every level by what the whole image shows (squeeze-and-excitation)."""
    pooling: Literal["average", "attention"] = "average"
    """How the last features of all places become one vector: their mean, or one weighted by learned
    attention."""

    @model_validator(mode="after")
    def _check_name(self) -> ClassifierSection:
        ours = ("features", "strides", "kernels", "blocks", "dropout", "squeeze_excitation", "pooling")
        changed = [key for key in ours if getattr(self, key) != type(self).model_fields[key].default]
        if self.name != "cnn_classifier" and changed:
            raise ValueError(f"{', '.join(changed)}: {self.name} has a shape of its own; leave them out")
        return self


class ClassificationTrainingSection(FittingSection):
    """How the network is fitted. The budget is epochs or minutes; with both, what ends first."""

    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: the loss of a class counts inversely to its number of training cases."""
    balanced_sampling: bool = False
    """Draw every class equally often, instead of every case."""
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Exponent of the focal loss, which makes easy cases count less; 0 gives the plain cross-entropy."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each target that is spread over all classes."""
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Parameter of the beta distribution by which two samples are mixed; 0 mixes none."""


class ClassificationInferenceSection(Section):
    """How images are classified; a prediction takes these from its checkpoint."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images per forward pass, mirrored copies counted."""
    flips: bool = False
    """Average over all mirrored copies along `augmentation.mirror_axes` (test-time augmentation)."""
    operating_point: Probability | Literal["most_probable", "balanced"] = "most_probable"
    """From which probability on a case is called positive, of two classes or of each of several labels.
    `most_probable`: 0.5, which makes fewest errors where the classes are as frequent as among the validation
    cases. `balanced`: where it is as probable on either side if both were equally frequent, so that errors
    on the rarer class count as much as those on the other. A number: the largest threshold that finds this
    share of the positive validation cases."""
    coverage: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the validation cases that are answered without a call for review: the least confident others
    set the confidence below which a prediction is marked `review`."""


class ClassificationJob(Section):
    """A training of a classifier, complete."""

    task: Literal["classification"]
    """What kind of job it is."""
    data: ClassificationDataSection
    preprocessing: ClassificationPreprocessingSection
    augmentation: AugmentationSection = AugmentationSection()
    network: ClassifierSection = ClassifierSection()
    training: ClassificationTrainingSection
    inference: ClassificationInferenceSection = ClassificationInferenceSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _check_sizes(self) -> ClassificationJob:
        dims, size = self.network.dimensions, self.preprocessing.size
        if len(size) != dims or min(size) < 1:
            raise ValueError(f"preprocessing.size: needs {dims} positive numbers, as network.dimensions says")
        check_mirror_axes(self.augmentation.mirror_axes, dims, flips=self.inference.flips)
        if self.network.name != "cnn_classifier" and self.training.batch_size < 2:
            raise ValueError(
                f"training.batch_size: {self.network.name} normalises over a batch; take 2 or more"
            )
        if self.augmentation.in_plane:
            raise ValueError("augmentation.in_plane: is for segmentation; set it to false")
        return self

    @model_validator(mode="after")
    def _check_region(self) -> ClassificationJob:
        if (self.data.region_from is None) != (self.preprocessing.region is None):
            raise ValueError("preprocessing.region: is given exactly when data.region_from is")
        return self
