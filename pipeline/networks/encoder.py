"""The encoder that our networks share: one block per level of resolution, finest first."""

from __future__ import annotations

from torch import nn

from pipeline.config.learning import LevelsSection
from pipeline.networks.blocks import BLOCKS


def build_encoder(section: LevelsSection, in_channels: int) -> nn.ModuleList:
    """The blocks, finest first.

    Under one attribute name, `encoder`, it gives networks of every task the same names and shapes of weights,
    by which one can start from another (`pipeline.networks.pretrained`).

    Args:
        section: Widths, kernels, strides and blocks of the levels.
        in_channels: Channels of the image.
    """
    block, features = BLOCKS[section.blocks], section.features
    sizes = zip(
        (in_channels, *features), features, section.level_kernels, section.level_strides, strict=False
    )
    return nn.ModuleList(block(*level, section.dropout) for level in sizes)
