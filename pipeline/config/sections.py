"""What the jobs of all tasks have in common: which cases, what images go through, and the record.

Sections are frozen and strict. A function of another room takes the section it needs, never the whole job.
The docstring under a field is its documentation everywhere: in editors (JSON schema) and in `docs/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.config.fields import (
    Axes,
    Factors,
    Integers,
    Interval,
    PathField,
    Probability,
    Shares,
    Spacing,
)


class Section(BaseModel):
    """Common behaviour of all sections: unknown keys, wrong types and later changes are refused."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class CasesSection(Section):
    """Which cases there are, how they are divided and where they are kept."""

    manifest: PathField
    """What lists the cases; relative to this file."""
    num_folds: Annotated[int, Field(ge=2, le=100)] = 5
    """Folds made by patient when the manifest gives none."""
    fold: Annotated[int, Field(ge=0)] | Literal["all", "none"] = 0
    """The fold held out for validation; `all` holds out one after the other and joins their networks to an
    ensemble; `none` trains on every case."""
    series: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] | None = None
    """Which DICOM series to read where an image is a folder with several: per channel a series number, or a
    description in which `*` stands for anything, such as `["*T1*post*"]` (`clinseg series DIR` lists them).
    Null where each folder holds one volume."""
    regularise: bool = False
    """Resample DICOM series with gaps, copies, tilt or mixed sizes onto a regular grid instead of refusing
    them; what was done is told."""
    cache_dir: PathField = Field(default=Path("~/.cache/clinseg"), validate_default=True)
    """Where preprocessed cases are kept, keyed by content and chain; holds image data."""


class PreprocessingSection(Section):
    """The deterministic way from the stored image to the network's grid."""

    orientation: Annotated[str, Field(pattern="^[RLAPSI]{3}$")] = "RAS"
    """Anatomical direction of the array axes."""
    spacing: Spacing | None = None
    """Millimetres per voxel after orientation; null keeps every image's own."""
    normalisation: Literal["zscore", "minmax", "window", "dataset"] = "zscore"
    """`zscore`: mean 0, deviation 1 per image and channel. `minmax`: lowest 0, highest 1 per image and
    channel. `window`: clip to `window`, then to [-1, 1].
    `dataset`: clip to the 0.5 and 99.5 percentiles of foreground voxels of the training cases, then z-score
    with their mean and deviation (for CT, where numbers have a meaning)."""
    window: Interval | None = None
    """Lower and upper intensity of `normalisation: window`, in the image's unit."""

    @property
    def left_right_axis(self) -> int:
        """The array axis that runs between left and right."""
        return next(axis for axis, letter in enumerate(self.orientation) if letter in "LR")

    @model_validator(mode="after")
    def _check_contradictions(self) -> PreprocessingSection:
        if (self.normalisation == "window") != (self.window is not None):
            raise ValueError("window: is given exactly when normalisation is `window`")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError("window: the lower bound must be below the upper")
        if self.spacing is not None and min(self.spacing) <= 0:
            raise ValueError("spacing: must be positive millimetres")
        if {"RL", "AP", "SI"} != {next(p for p in ("RL", "AP", "SI") if c in p) for c in self.orientation}:
            raise ValueError("orientation: needs one of R/L, one of A/P and one of S/I, such as RAS")
        return self


class AugmentationSection(Section):
    """Random changes of training patches, drawn per sample; see `docs/augmentation.md`."""

    rotation_probability: Probability = 0.2
    """Of a rotation."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 30.0
    """Largest angle about each axis, drawn uniformly in both directions."""
    scaling_probability: Probability = 0.2
    """Of a change of size."""
    scaling_range: Factors = (0.7, 1.4)
    """Zoom factors, drawn log-uniformly."""
    elastic_probability: Probability = 0.0
    """Of an elastic deformation."""
    elastic_distance: Shares = (0.2, 0.4)
    """Distance of its control points along each axis, as a share of the patch's side."""
    elastic_displacement: Annotated[float, Field(ge=0, le=0.4)] = 0.25
    """Largest displacement of a control point along each axis, as a share of that distance; what is allowed
    folds nothing."""
    in_plane: bool = False
    """Rotate, scale and deform in the plane of the two finer axes only, and lower the resolution there; for
    thick slices. `preprocessing.spacing` tells the coarse axis."""
    mirror_axes: Integers = ()
    """Array axes flipped with probability 0.5. Where labels have sides, name them in `data.left_right_pairs`
    or leave out the left-right axis."""
    noise_probability: Probability = 0.1
    """Of added noise."""
    noise_deviation: Annotated[float, Field(ge=0)] = 0.1
    """Largest standard deviation of added Gaussian noise, in normalised intensity."""
    blur_probability: Probability = 0.2
    """Of a Gaussian blur."""
    blur_channel_probability: Probability = 0.5
    """Of each channel's being blurred when there is one."""
    blur_sigma: Factors = (0.5, 1.0)
    """Gaussian sigma in voxels."""
    brightness_probability: Probability = 0.15
    """Of a change of brightness."""
    brightness_range: Factors = (0.75, 1.25)
    """Factors on intensity, drawn per channel."""
    contrast_probability: Probability = 0.15
    """Of a change of contrast."""
    contrast_range: Factors = (0.75, 1.25)
    """Factors on the distance from the channel's mean, drawn per channel."""
    low_resolution_probability: Probability = 0.25
    """Of a lower resolution."""
    low_resolution_channel_probability: Probability = 0.5
    """Of each channel's losing resolution when there is one."""
    low_resolution_range: Shares = (0.5, 1.0)
    """Share of the voxels left per axis."""
    inverted_gamma_probability: Probability = 0.1
    """Of a gamma curve on the negative."""
    gamma_probability: Probability = 0.3
    """Of a gamma curve."""
    gamma_range: Factors = (0.7, 1.5)
    """Exponents, applied to intensity scaled to [0, 1], mean and deviation kept; drawn per channel."""

    @model_validator(mode="after")
    def _check_distance(self) -> AugmentationSection:
        if self.elastic_distance[0] < 0.05:
            raise ValueError(
                "elastic_distance: must be at least 0.05 of the side, or control points get too many"
            )
        return self


def check_mirror_axes(axes: Sequence[int], dimensions: int, *, flips: bool) -> None:
    """Refuses axes that are not there or named twice, and mirroring in prediction that training does not do.

    Args:
        axes: `augmentation.mirror_axes`.
        dimensions: Of the images.
        flips: `inference.flips`.

    Raises:
        ValueError: With the setting.
    """
    if bad := [axis for axis in axes if not 0 <= axis < dimensions]:
        raise ValueError(f"augmentation.mirror_axes: axes run from 0 to {dimensions - 1}, not {bad}")
    if len(set(axes)) < len(axes):
        raise ValueError(f"augmentation.mirror_axes: name each axis once, not {list(axes)}")
    if flips and not axes:
        raise ValueError(
            "inference.flips: averages over copies mirrored along augmentation.mirror_axes, which names no "
            "axis; a network that never saw mirrored images gets them wrong"
        )


class SlidingSection(Section):
    """How a window slides over full volumes; what is applied takes it from its checkpoint."""

    window_size: Axes | None = None
    """Voxels per axis of a sliding window; null takes the training patch."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a window that its neighbour covers again."""
    placement: Literal["even", "stepped"] = "even"
    """`even`: windows are spread evenly over the volume. `stepped`: step by step, the last moved back
    to fit, as MONAI lays them; for models that came in with its bundles."""
    blending: Literal["gaussian", "constant"] = "gaussian"
    """How overlapping windows are weighted."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Windows per forward pass, mirrored copies counted; null takes what suits the device."""
    flips: bool = False
    """Average over all copies of a window mirrored along `augmentation.mirror_axes`, as the network knows
    them from its training (test-time augmentation)."""
    skip_empty: bool = False
    """Compute windows that hold one single value only once; the result stays the same."""


class TrackingSection(Section):
    """Where the record goes."""

    experiment: Annotated[str, Field(min_length=1)] = "clinseg"
    """MLflow experiment."""
    uri: str | None = None
    """MLflow tracking URI; null takes `MLFLOW_TRACKING_URI`, else `sqlite:///mlruns/mlflow.db`."""
    overlays: Annotated[int, Field(ge=0)] = 3
    """Validation cases drawn at the end: worst, median, best and what lies between; of a classifier, what its
    answers rest on (Grad-CAM)."""
