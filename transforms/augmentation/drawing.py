"""Everything that is random about a sample, drawn in one place from its own seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transforms.augmentation.settings import IntensitySettings, Range, Settings, SpatialSettings


@dataclass(frozen=True, slots=True)
class ChannelDraw:
    """What happens to the intensities of one channel; None leaves a step out.

    Attributes:
        blur_sigma: Of a Gaussian, in voxels.
        brightness: Factor on intensity.
        contrast: Factor on the distance from the channel's mean.
        low_resolution: Voxels left per axis, as a share.
        inverted_gamma: Exponent applied to the negative.
        gamma: Exponent.
    """

    blur_sigma: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    low_resolution: float | None = None
    inverted_gamma: float | None = None
    gamma: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """What happens to one sample.

    Attributes:
        channels: What happens to the intensities of each.
        angles: Radians per plane: of the axes (0, 1), (0, 2) and (1, 2), or of the one plane there is; None
            leaves rotation out.
        zoom: Factor by which everything grows; None leaves scaling out.
        displacement: `(d, points…)` displacement of the control points of an elastic deformation along each
            axis, in voxels; None leaves it out.
        distance: Of the control points, as a share of the patch's side.
        mirrored: Array axes that are flipped.
        noise_deviation: Of Gaussian noise added to all channels; None leaves it out.
        noise_seed: Of that noise.
    """

    channels: tuple[ChannelDraw, ...]
    angles: tuple[float, ...] | None = None
    zoom: float | None = None
    displacement: NDArray[np.float64] | None = None
    distance: float = 1.0
    mirrored: tuple[int, ...] = ()
    noise_deviation: float | None = None
    noise_seed: int = 0

    @property
    def is_resampled(self) -> bool:
        """Whether more happens to the place of voxels than cropping and flipping."""
        return not (self.angles is None and self.zoom is None and self.displacement is None)


def draw_sample(seed: int, settings: Settings, sides: tuple[int, ...], num_channels: int) -> Draw:
    """Draws what happens to a sample.

    Args:
        seed: Of the sample; not negative.
        settings: Probabilities and ranges.
        sides: Voxels of the patch along the axes that may be deformed, two or three.
        num_channels: Of the image.
    """
    dice = _Dice(seed)
    angles, zoom = _draw_affine(dice, settings, len(sides))
    distance, displacement = _draw_elastic(dice, settings, sides)
    mirrored = tuple(axis for axis in settings.mirror_axes if dice.happens(0.5))
    has_noise = dice.happens(settings.noise_probability)
    return Draw(
        angles=angles,
        zoom=zoom,
        displacement=displacement,
        distance=distance,
        mirrored=mirrored,
        noise_deviation=dice.uniform((0.0, settings.noise_deviation)) if has_noise else None,
        noise_seed=dice.integer(),
        channels=_draw_channels(dice, settings, num_channels),
    )


def count_points(side: int, distance: float) -> int:
    """Control points along an axis: a cubic spline needs one before the patch and two behind."""
    return math.floor((side - 1) / (distance * side)) + 4


class _Dice:
    """The numbers that a seed gives, one after the other."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def happens(self, probability: float) -> bool:
        return self.generator.random() < probability

    def uniform(self, bounds: Range) -> float:
        low, high = bounds
        return low + (high - low) * self.generator.random()

    def integer(self) -> int:
        return int(self.generator.integers(2**62))


def _draw_affine(
    dice: _Dice, settings: SpatialSettings, dims: int
) -> tuple[tuple[float, ...] | None, float | None]:
    rotates, scales = dice.happens(settings.rotation_probability), dice.happens(settings.scaling_probability)
    largest = math.radians(settings.rotation_degrees)
    num_planes = 3 if dims == 3 else 1
    angles = tuple(dice.uniform((-largest, largest)) for _ in range(num_planes)) if rotates else None
    low, high = settings.scaling_range
    return angles, math.exp(dice.uniform((math.log(low), math.log(high)))) if scales else None


def _draw_elastic(
    dice: _Dice, settings: SpatialSettings, sides: tuple[int, ...]
) -> tuple[float, NDArray[np.float64] | None]:
    if not dice.happens(settings.elastic_probability):
        return 1.0, None
    distance = dice.uniform(settings.elastic_distance)
    largest = dice.uniform((0.0, settings.elastic_displacement)) * distance
    points = [count_points(side, distance) for side in sides]
    shares = dice.generator.uniform(-largest, largest, (len(sides), *points))
    return distance, shares * np.reshape(sides, (-1, *(1 for _ in sides)))


def _draw_channels(dice: _Dice, settings: IntensitySettings, num_channels: int) -> tuple[ChannelDraw, ...]:
    """Whether a step happens is drawn for the sample, how much of it for every channel."""
    s = settings

    def draw(probability: float, bounds: Range, channel_probability: float = 1.0) -> list[float | None]:
        if not dice.happens(probability):
            return [None] * num_channels
        return [
            dice.uniform(bounds) if dice.happens(channel_probability) else None for _ in range(num_channels)
        ]

    steps = (
        draw(s.blur_probability, s.blur_sigma, s.blur_channel_probability),
        draw(s.brightness_probability, s.brightness_range),
        draw(s.contrast_probability, s.contrast_range),
        draw(s.low_resolution_probability, s.low_resolution_range, s.low_resolution_channel_probability),
        draw(s.inverted_gamma_probability, s.gamma_range),
        draw(s.gamma_probability, s.gamma_range),
    )
    return tuple(ChannelDraw(*values) for values in zip(*steps, strict=True))
