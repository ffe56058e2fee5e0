"""What the jobs of all tasks have in common of learning: the shape of a network, and how it is trained."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.fields import ModelField, PerLevel, Probability, Widths
from pipeline.config.sections import Section


class LevelsSection(Section):
    """The shape of a network that sees an image at several levels of resolution."""

    name: str
    """Which network."""
    dimensions: Literal[2, 3] = 3
    """2 sees slices along the last array axis; 3 whole volumes."""
    features: Widths = (16, 32, 64, 128)
    """Channels per level, finest first."""
    strides: PerLevel | None = None
    """Down-sampling on entering each level; null halves every axis at each level but the first."""
    kernels: PerLevel | None = None
    """Kernel size per level, odd numbers; null takes 3 along every axis."""
    blocks: Literal["plain", "residual"] = "plain"
    """Two convolutions per level, with a skip round them if `residual`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of channels dropped after each block in training."""

    @property
    def level_strides(self) -> tuple[tuple[int, ...], ...]:
        """`strides` with its default filled in."""
        ones, twos = (1,) * self.dimensions, (2,) * self.dimensions
        return self.strides or (ones, *(twos for _ in self.features[1:]))

    @property
    def level_kernels(self) -> tuple[tuple[int, ...], ...]:
        """`kernels` with its default filled in."""
        return self.kernels or ((3,) * self.dimensions,) * len(self.features)

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Voxels of the finest grid per voxel of the coarsest, per axis."""
        return tuple(math.prod(along) for along in zip(*self.level_strides, strict=True))

    @model_validator(mode="after")
    def _check_levels(self) -> LevelsSection:
        for name, values in (("strides", self.strides), ("kernels", self.kernels)):
            if values is None:
                continue
            if len(values) != len(self.features):
                raise ValueError(
                    f"{name}: one entry per level is needed ({len(self.features)}), not {len(values)}"
                )
            if any(len(v) != self.dimensions for v in values):
                raise ValueError(f"{name}: each entry needs {self.dimensions} numbers")
        if self.strides is not None and min(map(min, self.strides)) < 1:
            raise ValueError("strides: must be positive")
        if self.kernels is not None and any(k < 1 or k % 2 == 0 for level in self.kernels for k in level):
            raise ValueError("kernels: must be odd and positive")
        return self


class LoopSection(Section):
    """The budget of a training and how it runs. It is epochs or minutes; with both, what ends first."""

    epochs: Annotated[int, Field(ge=1)] | None = None
    """Budget in epochs."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall-clock minutes of training and its validations; the learning rate follows the clock."""
    steps_per_epoch: Annotated[int, Field(ge=1)] = 100
    """Optimizer steps between two lines of the record."""
    batch_size: Annotated[int, Field(ge=1)] = 2
    """Samples per step, of each process where several train (`torchrun`)."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Validate and keep an exponential moving average of the weights with this decay per step."""
    validate_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between validations."""
    mixed_precision: bool = True
    """bfloat16 or float16 on a GPU, bfloat16 to learn on a CPU with units for it; masks of a CPU: float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU if there is one."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Everything random is derived from it."""
    deterministic: bool = False
    """Bit-identical repetition and resumption on one kind of machine; needs a budget in epochs."""

    @model_validator(mode="after")
    def _check_budget(self) -> LoopSection:
        if self.epochs is None and self.minutes is None:
            raise ValueError("epochs: give a budget, `epochs` or `minutes`")
        if self.deterministic and self.minutes is not None:
            raise ValueError(
                "deterministic: a budget in minutes depends on the clock; set `epochs` and `minutes: null`"
            )
        return self


class FittingSection(LoopSection):
    """How one network is fitted to what is known of every training case."""

    optimizer: Literal["muon", "adamw", "sgd"] = "adamw"
    """Muon for kernels with AdamW for the rest, AdamW, or SGD with Nesterov momentum."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Largest learning rate, at the start of the schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Decoupled for `adamw`, L2 for `sgd`."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Nesterov momentum of `sgd`."""
    schedule: Literal["poly", "cosine"] = "poly"
    """`poly`: (1 - progress)^0.9. `cosine`: half a wave. Both end at zero with the budget."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the budget over which the learning rate rises linearly."""
    gradient_clip: Annotated[float, Field(gt=0)] | None = 12.0
    """Largest norm of the gradient."""
    early_stopping: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many validations without a better one."""
    compile: bool = False
    """Compile the network for training (`torch.compile`); costs minutes before the budget begins."""
    start_from: ModelField | None = None
    """The model whose weights it starts from: a run, `latest`, a checkpoint file (relative to this file) or
    `models:/name@alias`; null starts from scratch. See `docs/fine-tuning.md`."""
    freeze_encoder: Probability = 0.0
    """Share of the budget over which the encoder stays as it was loaded; 1 keeps it to the end."""
    gradual_unfreezing: bool = False
    """Set the encoder free level by level, the coarsest first and the finest when that share is over."""
    depth_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate per stage away from the output: encoder levels, decoder levels, heads."""

    @model_validator(mode="after")
    def _check_start(self) -> FittingSection:
        if self.freeze_encoder and self.start_from is None:
            raise ValueError("freeze_encoder: an encoder is only frozen if it was loaded; give `start_from`")
        if self.gradual_unfreezing and not self.freeze_encoder:
            raise ValueError("gradual_unfreezing: nothing is frozen; give `freeze_encoder` a share, or false")
        return self
