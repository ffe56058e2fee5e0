"""Networks: one file each, chosen by name from a dict in plain sight."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config.segmentation import NetworkSection
from pipeline.networks.attention_unet import AttentionUNet

__all__ = ["NETWORKS", "AttentionUNet", "build_network"]

NETWORKS: dict[str, Callable[[NetworkSection, int, int], AttentionUNet]] = {
    "attention_unet": AttentionUNet,
}


def build_network(section: NetworkSection, in_channels: int, out_channels: int) -> AttentionUNet:
    """The network that `section` names, with fresh weights from torch's global generator.

    Args:
        section: Name and shape of the network.
        in_channels: Channels of the image.
        out_channels: Logits per voxel.
    """
    return NETWORKS[section.name](section, in_channels, out_channels)
