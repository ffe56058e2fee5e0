"""A segmentation job: what it has beside what all jobs have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.fields import Axes, Colour, ModelField, Names, Pairs, PathField, Probability, Region
from pipeline.config.learning import FittingSection, LevelsSection
from pipeline.config.monai_networks import MonaiNetwork, monai_stride
from pipeline.config.sections import (
    AugmentationSection,
    CasesSection,
    PreprocessingSection,
    Section,
    SlidingSection,
    TrackingSection,
    check_mirror_axes,
)
from pipeline.terminology import Category, Code, Side, Term, term_of


class TermSection(Section):
    """What a structure is, where its name does not tell or another colour is wanted."""

    code: Annotated[str, Field(min_length=1, max_length=16)] | None = None
    """Code of the structure itself, without its side; null takes that of its name."""
    meaning: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """What the code means, in words."""
    scheme: Annotated[str, Field(min_length=1, max_length=16)] = "SCT"
    """Coding scheme of the code; `SCT` is SNOMED CT."""
    category: Category | None = None
    """What kind of thing it is; null takes that of its name."""
    side: Side | None = None
    """Which of a pair; null takes what its name says."""
    colour: Colour | None = None
    """`"#rrggbb"`; null takes the next of the palette."""

    @model_validator(mode="after")
    def _check_code(self) -> TermSection:
        if (self.code is None) != (self.meaning is None):
            raise ValueError("code: is given together with its `meaning`")
        return self

    def resolve(self, name: str) -> Term:
        """The term of the structure called `name`: what is said here, else what its name says."""
        known = term_of(name)
        code = known.code
        if self.code is not None and self.meaning is not None:
            code = Code(self.code, self.meaning, self.scheme)
        return Term(code, self.category or known.category, self.side or known.side, self.colour)


class DataSection(CasesSection):
    """Which cases there are and how they are divided."""

    manifest: PathField
    """A Decathlon `dataset.json`, an nnU-Net raw folder, or a CSV; relative to this file."""
    labels: dict[str, Annotated[int, Field(ge=0, le=65535)]] | None = None
    """Label names and values, background included; needed for a CSV, else taken from the manifest."""
    regions: dict[str, Region] | None = None
    """Overlapping structures as unions of label values, outer to inner; a voxel of a region is written with
    the first value of the innermost region that holds it. Sets one sigmoid output per region. Null
    takes those of an nnU-Net manifest, if labels are taken from there too."""
    ignore_value: Annotated[int, Field(ge=1, le=65535)] | None = None
    """What label maps hold where nobody knows: left out of loss and metrics, never predicted. Null takes the
    manifest's, if it has one (nnU-Net's `ignore`)."""
    absent_means_unlabelled: Names | bool = False
    """Structures that nobody drew in the cases whose label map holds none of them, instead of being absent
    there; `true` means all. A case of which the manifest says what is labelled goes by that."""
    left_right_pairs: Pairs = ()
    """Names of labels of the two sides, such as `[[left_kidney, right_kidney]]`: they change places whenever
    a patch (`augmentation.mirror_axes`) or a window (`inference.flips`) is mirrored from left to right."""
    terminology: dict[str, TermSection] = Field(default_factory=dict)
    """Codes and colours of structures for DICOM and for pages; what is not said here follows from the
    structure's name (`docs/labels.md`)."""

    subgroups: Names = ()
    """Columns of a CSV manifest by whose groups `clinseg card` tells figures, such as `[sex, scanner]`;
    nothing else of the manifest goes with a model. Numbers are divided into quarters of the cases."""

    @property
    def terms(self) -> dict[str, Term]:
        """The terms of the structures of which something is said."""
        return {name: said.resolve(name) for name, said in self.terminology.items()}

    @model_validator(mode="after")
    def _check_labels(self) -> DataSection:
        values = list((self.labels or {}).values())
        if self.labels is not None and (len(set(values)) != len(values) or 0 not in values):
            raise ValueError("labels: give each name its own value, one of them 0 for the background")
        if self.ignore_value in values:
            raise ValueError(
                f"ignore_value: {self.ignore_value} is one of the labels; ignored voxels have none"
            )
        if self.regions is not None and not self.regions:
            raise ValueError("regions: name at least one, or set it to null where nothing overlaps")
        first = [region[0] for region in (self.regions or {}).values()]
        if len(set(first)) != len(first):
            raise ValueError(
                "regions: each region needs its own first value, which its voxels are written with"
            )
        return self

    @model_validator(mode="after")
    def _check_pairs(self) -> DataSection:
        names = [name for pair in self.left_right_pairs for name in pair]
        if len(set(names)) != len(names):
            raise ValueError("left_right_pairs: each label has one partner, which is not itself")
        return self


class SegmentationAugmentationSection(AugmentationSection):
    """Random changes of training patches, and twins of the training images, which share their labels."""

    from_enhancer: ModelField | None = None
    """An enhancer that makes a twin of every training image, once, before training: a run, `latest`, a
    checkpoint file (relative to this file) or `models:/name@alias`. See `docs/enhancement.md`."""
    enhancer_reverse: bool = False
    """The enhancer's way back, which makes good images noisy, say, for a network that shall stand noise."""
    enhancer_probability: Probability = 0.5
    """Of drawing a patch from the twin instead of the image."""


class NetworkSection(LevelsSection):
    """The network's shape."""

    name: Literal["attention_unet"] | MonaiNetwork = "attention_unet"
    """Which network: ours (`docs/attention-unet.md`), or one of MONAI's, whose shape `arguments` has."""
    arguments: dict[str, Any] | None = None
    """What one of MONAI's networks is built with, by its own names and without numbers of dimensions and
    channels; null for `attention_unet`, whose shape the other settings here are."""
    dimensions: Literal[2, 3] = 3
    """2 trains on and predicts slices along the last array axis; 3 whole volumes."""
    attention_gates: bool = True
    """Additive attention on the skip connections; off gives the plain U-Net of equal width."""
    deep_supervision: bool = True
    """Extra outputs at coarser levels, used in training only."""

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Voxels of the finest grid per voxel of the coarsest, per axis."""
        if self.arguments is None:
            return super().total_stride
        return monai_stride(self.name, self.arguments, self.dimensions)

    @model_validator(mode="after")
    def _check_arguments(self) -> NetworkSection:
        if (self.name == "attention_unet") != (self.arguments is None):
            raise ValueError("arguments: are given exactly when the network is one of MONAI's")
        if self.arguments is None:
            return self
        own = {name: value for name, value in self if name not in ("name", "dimensions", "arguments")}
        defaults = {name: type(self).model_fields[name].default for name in own}
        if wrong := [name for name in own if own[name] != defaults[name]]:
            raise ValueError(f"{wrong[0]}: is for `attention_unet`; say it in `arguments`, or leave it out")
        self.total_stride  # noqa: B018 - a ValueError of its own says what is wrong
        return self

    @model_validator(mode="after")
    def _check_first_level(self) -> NetworkSection:
        if self.strides is not None and set(self.strides[0]) != {1}:
            raise ValueError(
                "strides: the first level keeps the resolution (all 1), being that of the output"
            )
        return self


class TrainingSection(FittingSection):
    """How the network is fitted. The budget is epochs or minutes; with both, what ends first."""

    patch_size: Axes = (64, 64, 64)
    """Voxels per axis of a training patch, on the network's grid."""
    foreground_fraction: Probability = 0.33
    """Share of patches centred on a random voxel of a random structure."""


class InferenceSection(SlidingSection):
    """How full volumes are predicted; a prediction takes these from its checkpoint."""

    largest_component: Names = ()
    """Structures of which only the largest connected component is kept; a cross-validation (`data.fold: all`)
    adds those for which its own predictions become better by it."""


class SegmentationJob(Section):
    """A training of a segmentation network, complete."""

    task: Literal["segmentation"] = "segmentation"
    """What kind of job it is."""
    data: DataSection
    preprocessing: PreprocessingSection = PreprocessingSection()
    augmentation: SegmentationAugmentationSection = SegmentationAugmentationSection()
    network: NetworkSection = NetworkSection()
    training: TrainingSection
    inference: InferenceSection = InferenceSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _check_sizes(self) -> SegmentationJob:
        dims, total = self.network.dimensions, self.network.total_stride
        if self.network.arguments is not None and (
            self.training.freeze_encoder or self.training.depth_decay != 1
        ):
            raise ValueError(
                "training.freeze_encoder: a network of MONAI's is learnt as a whole; set it to 0, and "
                "`depth_decay` to 1"
            )
        for name, size in (
            ("training.patch_size", self.training.patch_size),
            ("inference.window_size", self.inference.window_size),
        ):
            if size is None:
                continue
            if len(size) != dims:
                raise ValueError(f"{name}: needs {dims} numbers, as network.dimensions says")
            if size == total or any(n < 1 or n % t for n, t in zip(size, total, strict=True)):
                raise ValueError(
                    f"{name}: each axis must be a multiple of the network's total stride {total}, "
                    "and not all of them that stride itself"
                )
        check_mirror_axes(self.augmentation.mirror_axes, dims, flips=self.inference.flips)
        if self.augmentation.in_plane:
            spacing = sorted(self.preprocessing.spacing or ())
            if dims == 2 or not spacing or spacing[1] == spacing[2]:
                raise ValueError(
                    "augmentation.in_plane: needs three dimensions, and one axis of preprocessing.spacing "
                    "that is coarser than the others"
                )
        return self
