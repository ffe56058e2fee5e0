"""Generators: networks that make an image of another kind out of an image, on the same grid, in 2D and 3D.

`docs/enhancement.md` has the table of their levels, and what differs from the papers and why.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

from torch import Tensor, nn

from pipeline.config.generators import GeneratorSection
from pipeline.config.learning import LevelsSection
from pipeline.config.segmentation import NetworkSection
from pipeline.networks.attention_unet import AttentionUNet
from pipeline.networks.blocks import (
    CONVOLUTION,
    DROPOUT,
    NEGATIVE_SLOPE,
    NORM,
    Axes,
    Pointwise,
    check_size,
    initialise,
    upsample_linear,
)

FIRST_STRENGTH: Final = 0.1
"""Of what random numbers are multiplied by, in deviations of an image."""


class AbstractGenerator(nn.Module):
    """What makes an image out of another, and may add what no network has to learn.

    Args:
        section: The shape of the networks.
        channels: Of an image.

    Attributes:
        total_stride: What every axis of an image must be a multiple of.
    """

    def __init__(self, section: GeneratorSection, channels: int) -> None:
        super().__init__()
        self.total_stride: Axes = section.total_stride
        first = section.neighbours * channels
        self._image = slice(first, first + channels)  # the slice that is meant, between its neighbours


class Generator(AbstractGenerator):
    """What makes an image out of an image: a body, and with `residual` the image that its output corrects.

    Such a generator begins as the identity, because the last layer of its body begins at zero: neither the
    cycle nor the identity loss has anything to say then, and the discriminator finds that layer the way. The
    rest of the body learns from the second step on.

    Random numbers come in twice: the body sees them, and makes maps for each channel of them, which it is
    multiplied by before it is added. So white noise whose strength depends on the image, as a scanner's does,
    is a matter of the last layer.

    Args:
        body: Sees all channels and gives those of an image, then as many again per channel of noise.
        section: The shape of the network.
        channels: Of an image.
    """

    def __init__(
        self, body: ResidualEncoderDecoder | AttentionUNet, section: GeneratorSection, channels: int
    ) -> None:
        super().__init__(section, channels)
        self.body = body
        self._is_residual = section.residual
        self._channels = channels
        if section.residual:
            nn.init.zeros_(body.head.weight)
        # At 0 a discriminator could not tell which way to go, noise being symmetric.
        nn.init.constant_(body.head.bias[channels:], FIRST_STRENGTH)

    def forward(self, image: Tensor) -> Tensor:
        """The image that is made of another, not squashed: intensities have no bounds.

        Args:
            image: (B, channels · (2 · neighbours + 1) + noise channels, …): the slices as
                `transforms.enhancement.stack_neighbours` orders them, the one that is meant in the middle,
                then the noise.

        Returns:
            (B, channels, …) on the grid of `image`.

        Raises:
            ValueError: If the image has another rank, a size that is no multiple of `total_stride`, or so
                few voxels that the coarsest grid has only one.
        """
        output, *strengths = self.body(image).split(self._channels, dim=1)
        made: Tensor = image[:, self._image] + output if self._is_residual else output
        for place, strength in enumerate(reversed(strengths), start=1):  # noise stands last
            made = made + strength * image[:, -place, None]
        return made


class ResidualEncoderDecoder(nn.Module):
    """Down, residual blocks on the coarsest grid, and up again, after Zhu et al. 2017, arXiv:1703.10593.

    A level of the encoder is one convolution, and so is one of the decoder; what the encoder found is added
    to what comes up to its level. That is resampled linearly before it is convolved (Odena et al. 2016,
    doi:10.23915/distill.00003), so that the strides leave no pattern in the image.

    Args:
        section: The shape of the network.
        in_channels: Of what it sees.
        out_channels: Of what it makes.

    Attributes:
        total_stride: Voxels of the finest grid per voxel of the coarsest, per axis.
        head: The linear layer at the end, voxel by voxel.
    """

    def __init__(self, section: GeneratorSection, in_channels: int, out_channels: int) -> None:
        super().__init__()
        features, norm = section.features, section.norm
        kernels, self._strides = section.level_kernels, section.level_strides
        self.total_stride: Axes = section.total_stride

        widths, encoding = pairwise((in_channels, *features)), (_stem_kernel(kernels[0]), *kernels[1:])
        self.encoder = nn.ModuleList(
            _level(*width, kernel, stride, norm)
            for width, kernel, stride in zip(widths, encoding, self._strides, strict=True)
        )
        self.blocks = nn.Sequential(
            *(_Block(features[-1], kernels[-1], norm, section.dropout) for _ in range(section.num_blocks))
        )
        # What joins a level to the next coarser one, finest first.
        self.ups, self.decoder = nn.ModuleList(), nn.ModuleList()
        for kernel, (fine, coarse) in zip(kernels, pairwise(features), strict=False):
            self.ups.append(Pointwise(coarse, fine))
            self.decoder.append(_level(fine, fine, kernel, (1,) * len(kernel), norm))
        self.head = Pointwise(features[0], out_channels)

        self.apply(initialise)
        for block in self.blocks:
            assert isinstance(block, _Block)
            block.shrink(1 / math.sqrt(section.num_blocks))

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, …) → (B, out_channels, …), not activated."""
        check_size(image, self.total_stride)
        features, skips = image, []
        for convolve in self.encoder:
            features = convolve(features)
            skips.append(features)
        skips.pop()  # the coarsest level has no skip
        features = self.blocks(features)
        for level in reversed(range(len(self.decoder))):
            # Fewer channels first: a pointwise layer and linear resampling may change places.
            features = upsample_linear(self.ups[level](features), self._strides[level + 1])
            features = self.decoder[level](features + skips.pop())
        output: Tensor = self.head(features)
        return output


def generating_unet(section: GeneratorSection, in_channels: int, out_channels: int) -> AttentionUNet:
    """The U-Net of segmentation; see `AttentionUNet`.

    Args:
        section: The shape of the network.
        in_channels: Of what it sees.
        out_channels: Of what it makes.
    """
    levels = section.model_dump(include=set(LevelsSection.model_fields))
    gates = section.attention_gates
    return AttentionUNet(
        NetworkSection(**levels, attention_gates=gates, deep_supervision=False), in_channels, out_channels
    )


class _Block(nn.Module):
    """Two convolutions whose output is added to their input; no activation follows (Johnson et al. 2016)."""

    def __init__(self, features: int, kernel: Axes, norm: str, dropout: float) -> None:
        super().__init__()
        ones = (1,) * len(kernel)
        self.first = _level(features, features, kernel, ones, norm)
        self.dropout = DROPOUT[len(kernel)](dropout)
        self.second = _convolution(features, features, kernel, ones, norm)

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = features + self.second(self.dropout(self.first(features)))
        return output

    def shrink(self, factor: float) -> None:
        """Makes what the fresh block adds smaller, so that many blocks add no more than one."""
        weight = self.second[-1].weight  # of the norm, or without one of the convolution
        assert isinstance(weight, nn.Parameter)
        weight.data.mul_(factor)


def _level(in_channels: int, features: int, kernel: Axes, stride: Axes, norm: str) -> nn.Sequential:
    layers = _convolution(in_channels, features, kernel, stride, norm)
    return layers.append(nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True))


def _convolution(in_channels: int, features: int, kernel: Axes, stride: Axes, norm: str) -> nn.Sequential:
    """A convolution with its norm, if there is one; a norm would subtract its bias."""
    dimensions, has_norm = len(kernel), norm == "instance"
    padding = tuple(k // 2 for k in kernel)
    convolution = CONVOLUTION[dimensions](in_channels, features, kernel, stride, padding, bias=not has_norm)
    return nn.Sequential(convolution, *([NORM[dimensions](features, affine=True)] if has_norm else []))


def _stem_kernel(kernel: Axes) -> Axes:
    """Four wider in slices, 7 for 3, as in the paper; in volumes that would cost more than all the rest."""
    return tuple(k + 4 if k > 1 else 1 for k in kernel) if len(kernel) == 2 else kernel
