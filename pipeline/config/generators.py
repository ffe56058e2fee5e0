"""The networks of an enhancement job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.fields import Interval
from pipeline.config.learning import LevelsSection


class GeneratorSection(LevelsSection):
    """The networks' shape: both generators, which are alike, and both discriminators."""

    name: Literal["residual_generator", "attention_unet"] = "residual_generator"
    """`residual_generator`: down, residual blocks on the coarsest grid, up (Zhu et al. 2017), what was found
    on the way down being added on the way up. `attention_unet`: that of segmentation. See
    `docs/enhancement.md`."""
    neighbours: Annotated[int, Field(ge=0, le=8)] = 0
    """Slices on either side that a network of two dimensions sees as further channels (2.5D)."""
    num_blocks: Annotated[int, Field(ge=1, le=32)] = 6
    """Residual blocks on the coarsest grid of `residual_generator`."""
    norm: Literal["instance", "none"] = "instance"
    """Of `residual_generator`. Without it intensities do not depend on what else a window shows."""
    attention_gates: bool = True
    """Gates on the skips of `attention_unet`."""
    residual: bool = True
    """Learn a correction that is added to the image, instead of the image itself."""
    noise_channels: Annotated[int, Field(ge=0, le=8)] = 0
    """Channels of random numbers that the way back sees beside the image; for sources that look different
    each time, such as noisy ones (Almahairi et al. 2018)."""
    noise: Literal["free", "rician", "grain", "slices"] = "free"
    """What the way back makes of them. `free`: a correction that may depend on them, and each channel times a
    map. `rician`: the noise of an MR magnitude, of which the strength alone is learnt, a number a window;
    takes two channels, and `preprocessing.normalisation: magnitude`, which says where 0 is. `grain`: added
    noise of one texture per channel, whose strength changes slowly across the image, as in CT; it shifts no
    mean. `slices`: no noise, but thicker slices across the last axis, from a random place on; their thickness
    alone is learnt. It takes one channel, and `slice_distance`."""
    slice_distance: Annotated[float, Field(gt=1)] | None = None
    """How far apart the slices of sources lie, in voxels of the network's grid; for `noise: slices`."""
    discriminator_features: Annotated[int, Field(ge=1)] = 32
    """Channels of a discriminator's first level; doubled at each further one, up to eight times as many."""
    discriminator_levels: Annotated[int, Field(ge=1, le=5)] = 3
    """Strided levels of a discriminator. With three it judges patches of 70 voxels a side and needs training
    patches of 24, with two 34 and 12, with one 16 and 6."""
    spectral_norm: bool = False
    """Bound how steep discriminators are (Miyato et al. 2018), instead of instance norm."""
    judged_range: Interval | None = None
    """Scaled intensities that discriminators see, lowest and highest; what lies beyond counts as the nearer
    one. In CT the step from air to skin would else drown the noise. Null: all of them."""

    @property
    def smallest_judged(self) -> int:
        """Voxels per axis that a discriminator needs of an image: three are left by its strides."""
        return 3 << self.discriminator_levels

    @model_validator(mode="after")
    def _check_neighbours(self) -> GeneratorSection:
        if self.neighbours and self.dimensions == 3:
            raise ValueError("neighbours: a network of three dimensions sees them already; set it to 0")
        return self

    @model_validator(mode="after")
    def _check_noise(self) -> GeneratorSection:
        if self.noise == "rician" and self.noise_channels != 2:
            raise ValueError("noise: rician is the magnitude of two noisy parts; set noise_channels to 2")
        return self

    @model_validator(mode="after")
    def _check_grain(self) -> GeneratorSection:
        if self.noise == "grain" and not self.noise_channels:
            raise ValueError("noise: grain is made of random numbers; set noise_channels to 1")
        return self

    @model_validator(mode="after")
    def _check_slices(self) -> GeneratorSection:
        is_meant = self.noise == "slices"
        if is_meant and (self.noise_channels != 1 or self.dimensions != 3):
            raise ValueError(
                "noise: slices begin at one random place in a volume; set noise_channels to 1 and "
                "dimensions to 3"
            )
        if is_meant != (self.slice_distance is not None):
            raise ValueError("slice_distance: belongs to noise: slices, which needs it; set both, or neither")
        return self

    @model_validator(mode="after")
    def _check_name(self) -> GeneratorSection:
        others = (
            ("blocks", "attention_gates") if self.name == "residual_generator" else ("num_blocks", "norm")
        )
        if changed := [key for key in others if getattr(self, key) != type(self).model_fields[key].default]:
            raise ValueError(f"{', '.join(changed)}: {self.name} has no such choice; leave it out")
        return self
