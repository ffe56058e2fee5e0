"""The deterministic way from an image as stored to the network's grid: orient, resample, normalise.

The chain is MONAI's. Its door takes plain arrays with an affine, so no reader's habits come in, and gives
back plain tensors with the affine of the network's grid, so no metadata tracking slows what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
    Transform,
)
from numpy.typing import NDArray
from torch import Tensor

from transforms.keys import IMAGE, LABEL

# Said to MONAI explicitly: its default is about to change.
_ANATOMICAL_PAIRS = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True, slots=True)
class IntensityStatistics:
    """What `normalisation: dataset` needs to know of one channel, in the image's own unit."""

    low: float
    high: float
    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Settings of the deterministic chain; equal settings give equal voxels.

    Attributes:
        orientation: Anatomical direction of the array axes, such as `RAS`.
        spacing: Millimetres per voxel along them, or None to keep the image's own.
        normalisation: `zscore` or `minmax` (per image and channel), `window` or `dataset`; `none` where it is
            done apart, as `magnitude` is, which is an enhancer's.
        window: Lower and upper bound for `window`.
        statistics: One entry per channel for `dataset`.
    """

    orientation: str = "RAS"
    spacing: tuple[float, float, float] | None = None
    normalisation: Literal["zscore", "minmax", "window", "dataset", "magnitude", "none"] = "zscore"
    window: tuple[float, float] | None = None
    statistics: tuple[IntensityStatistics, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A case on the network's grid.

    Attributes:
        image: `(C, H, W, D)` float32, normalised.
        affine: 4x4 float64, voxel of `image` → world, RAS millimetres.
        label: `(H, W, D)` label values, or None.
    """

    image: Tensor
    affine: NDArray[np.float64]
    label: Tensor | None = None


def preprocess(
    settings: Preprocessing,
    channels: Sequence[NDArray[np.generic]],
    affine: NDArray[np.float64],
    label: NDArray[np.generic] | None = None,
) -> Prepared:
    """Brings one case to the network's grid.

    Args:
        settings: What to do.
        channels: One `(I, J, K)` array per channel, all on one grid, in any orientation.
        affine: 4x4, their voxel → world, RAS millimetres.
        label: `(I, J, K)` label values on the same grid; resampled by nearest neighbour.

    Returns:
        Image, affine and label on the network's grid.
    """
    # Converted while it is copied: nothing is there twice.
    stored_image = np.empty((len(channels), *channels[0].shape), dtype=np.float32)
    for place, channel in zip(stored_image, channels, strict=True):
        place[...] = channel
    sample = {IMAGE: MetaTensor(torch.from_numpy(stored_image), affine=torch.from_numpy(affine))}
    del stored_image, place
    if label is not None:
        # float32 holds every label value up to 65535 exactly, and MONAI resamples floats only.
        stored = torch.from_numpy(np.asarray(label, dtype=np.float32))[None]
        sample[LABEL] = MetaTensor(stored, affine=torch.from_numpy(affine))
    with torch.no_grad():
        sample = build_chain(settings, tuple(sample))(sample)
    result = sample[IMAGE]
    return Prepared(
        image=result.as_tensor().contiguous(),
        affine=np.asarray(result.affine, dtype=np.float64),
        label=sample[LABEL].as_tensor()[0].to(torch.int32).contiguous() if label is not None else None,
    )


def build_chain(settings: Preprocessing, keys: Sequence[str]) -> Compose:
    """The MONAI chain of `settings` for dictionaries with `keys` (image, and label if there is one)."""
    modes = ["bilinear" if key == IMAGE else "nearest" for key in keys]
    chain: list[Transform] = [Orientationd(keys, axcodes=settings.orientation, labels=_ANATOMICAL_PAIRS)]
    if settings.spacing is not None:
        chain.append(Spacingd(keys, pixdim=settings.spacing, mode=modes, dtype=np.float32))
    chain.append(_MakeContiguous())
    if settings.normalisation != "none":
        chain.append(_build_normalisation(settings))
    return Compose(chain)


def _build_normalisation(settings: Preprocessing) -> Transform:
    if settings.normalisation == "window":
        assert settings.window is not None
        low, high = settings.window
        return ScaleIntensityRanged([IMAGE], a_min=low, a_max=high, b_min=-1.0, b_max=1.0, clip=True)
    if settings.normalisation == "dataset":
        return _NormaliseByStatistics(settings.statistics)
    if settings.normalisation == "minmax":
        return _NormaliseToRange()
    return _NormaliseToUnit()


class _MakeContiguous(Transform):
    """Lays voxels out in memory order: sums then run the same way, whatever orientation was stored."""

    def __call__(self, sample: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: tensor.contiguous() for key, tensor in sample.items()}


class _NormaliseToUnit(Transform):
    """Z-score per image and channel, bit-equal to MONAI's NormalizeIntensity, which takes two more copies."""

    def __call__(self, sample: dict[str, MetaTensor]) -> dict[str, MetaTensor]:
        for channel in sample[IMAGE].as_tensor():
            mean, deviation = float(channel.mean()), float(channel.std(unbiased=False))
            channel.sub_(mean).div_(deviation or 1.0)
        return sample


class _NormaliseToRange(Transform):
    """From lowest 0 to highest 1 per image and channel, bit-equal to MONAI's ScaleIntensity."""

    def __call__(self, sample: dict[str, MetaTensor]) -> dict[str, MetaTensor]:
        for channel in sample[IMAGE].as_tensor():
            low, high = channel.min(), channel.max()
            channel.sub_(low).div_(high - low if high > low else 1.0)
        return sample


class _NormaliseByStatistics(Transform):
    """Clips each channel to its percentiles and scales it by its mean and deviation, as nnU-Net does CT."""

    def __init__(self, statistics: Sequence[IntensityStatistics]) -> None:
        self.statistics = statistics

    def __call__(self, sample: dict[str, MetaTensor]) -> dict[str, MetaTensor]:
        image = sample[IMAGE]
        assert len(self.statistics) == image.shape[0], "one entry of statistics per channel"
        for channel, known in zip(image, self.statistics, strict=True):
            channel.clamp_(known.low, known.high).sub_(known.mean).div_(max(known.deviation, 1e-8))
        return sample
