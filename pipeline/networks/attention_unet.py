"""Attention U-Net: an encoder, a decoder, and a gate on every skip between them, in 2D and 3D.

`docs/attention-unet.md` has the picture, the equations, and what differs from the paper and why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.config.segmentation import NetworkSection
from pipeline.networks.blocks import (
    BLOCKS,
    TRANSPOSED,
    AttentionGate,
    Axes,
    Pointwise,
    ResidualBlock,
    check_size,
    initialise,
)
from pipeline.networks.encoder import build_encoder


class AttentionUNet(nn.Module):
    """U-Net with additive attention on its skips (Oktay et al. 2018, arXiv:1804.03999).

    Levels are numbered from 0, the finest. Images are (B, C, H, W) or (B, C, H, W, D); every axis must be a
    multiple of `total_stride`, with more than one voxel left on the coarsest grid.

    Args:
        section: The shape of the network. With `attention_gates` off it is the plain U-Net of equal width.
        in_channels: Channels of the image.
        out_channels: Logits per voxel.

    Attributes:
        total_stride: Voxels of the finest grid per voxel of the coarsest, per axis.
    """

    def __init__(self, section: NetworkSection, in_channels: int, out_channels: int) -> None:
        super().__init__()
        features, dimensions = section.features, section.dimensions
        self._strides, self._kernels = section.level_strides, section.level_kernels
        self.total_stride: Axes = section.total_stride

        block, transposed = BLOCKS[section.blocks], TRANSPOSED[dimensions]
        self.encoder = build_encoder(section, in_channels)

        # What joins a level to the next coarser one, finest first.
        self.gates, self.ups, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, (fine, coarse) in enumerate(pairwise(features)):
            kernel, stride = self._kernels[level], self._strides[level + 1]
            if section.attention_gates:
                self.gates.append(AttentionGate(fine, coarse, stride))
            self.ups.append(transposed(coarse, fine, stride, stride, bias=False))
            self.decoder.append(block(2 * fine, fine, kernel, (1,) * dimensions, section.dropout))

        supervised = features[:-1] if section.deep_supervision else features[:1]
        self.heads = nn.ModuleList(Pointwise(width, out_channels) for width in supervised)
        self.apply(initialise)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, out_channels, …) on the grid of `image`, not activated.

        Raises:
            ValueError: If the image has another rank, a size that is no multiple of `total_stride`, or so
                few voxels that the coarsest grid has only one.
        """
        logits: Tensor = self.head(self.forward_features(image))
        return logits

    def forward_features(self, image: Tensor) -> Tensor:
        """The features (B, features[0], …) of which `head` makes the logits of `forward`."""
        decoded, _ = self._decode(image)
        return decoded[0]

    @property
    def head(self) -> Pointwise:
        """The linear layer that makes the finest logits, voxel by voxel."""
        head = self.heads[0]
        assert isinstance(head, Pointwise)
        return head

    def forward_deep(self, image: Tensor) -> list[Tensor]:
        """Logits of every supervised level, finest first; the first are those of `forward`.

        Level `i` lies on the grid of `image` divided by the strides up to `i`. Without deep supervision the
        list holds the finest alone.
        """
        decoded, _ = self._decode(image)
        return [head(features) for head, features in zip(self.heads, decoded, strict=False)]

    def forward_with_gates(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits of `forward`, and the attention of every gate, finest first.

        The attention of level `i` is (B, 1, …) in [0, 1] on the grid of that level; without gates there is
        none.
        """
        decoded, attention = self._decode(image)
        return self.head(decoded[0]), attention

    @property
    def stages(self) -> list[nn.Module]:
        """The network from input to output; every parameter is in exactly one stage.

        The levels of the encoder, finest first; then what makes each finer level of the decoder (gate,
        up-sampling, block), coarsest first; then all heads.
        """
        joints: list[nn.Module] = [
            nn.ModuleList([*self.gates[level : level + 1], self.ups[level], self.decoder[level]])
            for level in reversed(range(len(self.decoder)))
        ]
        return [*self.encoder, *joints, self.heads]

    @property
    def receptive_field(self) -> Axes:
        """Voxels per axis that one logit can depend on through convolutions and gates.

        It differs with the position on the coarsest grid; this is the largest. Instance norm, which lets
        every voxel of the image weakly touch all others, is left out.
        """
        is_residual, is_gated = isinstance(self.encoder[0], ResidualBlock), len(self.gates) > 0
        along_axes = zip(zip(*self._strides, strict=True), zip(*self._kernels, strict=True), strict=True)
        return tuple(_Axis(*sizes, is_residual, is_gated).receptive_field() for sizes in along_axes)

    def _decode(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Decoder features and attention of all levels, finest first."""
        check_size(image, self.total_stride)
        features, skips = image, []
        for block in self.encoder:
            features = block(features)
            skips.append(features)
        skips.pop()  # the coarsest level has no skip; each skip is released once it is used
        decoded, attention = [], []
        for level in reversed(range(len(self.decoder))):
            skip = skips.pop()
            if self.gates:
                attention.append(self.gates[level](skip, features))
                skip = skip * attention[-1]
            features = self.decoder[level](torch.cat((skip, self.ups[level](features)), dim=1))
            decoded.append(features)
        return decoded[::-1], attention[::-1]


_Span = tuple[int, int]  # first and last voxel, both included


@dataclass(frozen=True)
class _Axis:
    """The network along one axis, followed backwards: which input voxels does a span of a level see?"""

    strides: tuple[int, ...]
    kernels: tuple[int, ...]
    is_residual: bool
    is_gated: bool

    def receptive_field(self) -> int:
        positions = range(math.prod(self.strides))
        spans = [self._seen_by_decoder(0, (position, position)) for position in positions]
        return max(last - first + 1 for first, last in spans)

    def _seen_by_decoder(self, level: int, span: _Span) -> _Span:
        if level == len(self.strides) - 1:
            return self._seen_by_encoder(level, span)
        stride, reach = self.strides[level + 1], 2 * (self.kernels[level] // 2)
        first, last = span[0] - reach, span[1] + reach
        coarse = (first // stride, last // stride)
        if self.is_gated:  # linear resampling also looks at the coarse voxel before or after
            coarse = ((2 * first + 1 - stride) // (2 * stride), -((stride - 2 * last - 1) // (2 * stride)))
            first, last = coarse[0] * stride, coarse[1] * stride + stride - 1
        return _union(self._seen_by_encoder(level, (first, last)), self._seen_by_decoder(level + 1, coarse))

    def _seen_by_encoder(self, level: int, span: _Span) -> _Span:
        if level < 0:
            return span
        stride, reach = self.strides[level], self.kernels[level] // 2
        seen = ((span[0] - reach) * stride - reach, (span[1] + reach) * stride + reach)
        if self.is_residual:
            seen = _union(seen, (span[0] * stride, span[1] * stride + stride - 1))
        return self._seen_by_encoder(level - 1, seen)


def _union(a: _Span, b: _Span) -> _Span:
    return min(a[0], b[0]), max(a[1], b[1])
