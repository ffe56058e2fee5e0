"""Networks: one file each, chosen by name from a dict in plain sight."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config.classification import ClassifierSection
from pipeline.config.segmentation import NetworkSection
from pipeline.networks.attention_unet import AttentionUNet
from pipeline.networks.classifier import Classifier
from pipeline.networks.cnn_classifier import CNNClassifier
from pipeline.networks.monai_classifier import densenet121, efficientnet_b0, resnet18, resnet50

__all__ = [
    "CLASSIFIERS",
    "NETWORKS",
    "AttentionUNet",
    "CNNClassifier",
    "Classifier",
    "build_classifier",
    "build_network",
]

NETWORKS: dict[str, Callable[[NetworkSection, int, int], AttentionUNet]] = {
    "attention_unet": AttentionUNet,
}

CLASSIFIERS: dict[str, Callable[[ClassifierSection, int, int], Classifier]] = {
    "cnn_classifier": CNNClassifier,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "densenet121": densenet121,
    "efficientnet_b0": efficientnet_b0,
}


def build_network(section: NetworkSection, in_channels: int, out_channels: int) -> AttentionUNet:
    """The network that `section` names, with fresh weights from torch's global generator.

    Args:
        section: Name and shape of the network.
        in_channels: Channels of the image.
        out_channels: Logits per voxel.
    """
    return NETWORKS[section.name](section, in_channels, out_channels)


def build_classifier(section: ClassifierSection, in_channels: int, out_channels: int) -> Classifier:
    """The classifier that `section` names, with fresh weights from torch's global generator.

    Args:
        section: Name and shape of the network.
        in_channels: Channels of the image.
        out_channels: Logits per image.
    """
    return CLASSIFIERS[section.name](section, in_channels, out_channels)
