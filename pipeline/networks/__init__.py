"""Networks: one file each, chosen by name from a dict in plain sight."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from pipeline.config.classification import ClassifierSection
from pipeline.config.generators import GeneratorSection
from pipeline.config.segmentation import NetworkSection
from pipeline.networks.attention_unet import AttentionUNet
from pipeline.networks.classifier import Classifier
from pipeline.networks.cnn_classifier import CNNClassifier
from pipeline.networks.discriminator import Discriminator
from pipeline.networks.generators import (
    AbstractGenerator,
    Generator,
    ResidualEncoderDecoder,
    generating_unet,
)
from pipeline.networks.monai_classifier import densenet121, efficientnet_b0, resnet18, resnet50
from pipeline.networks.monai_segmenter import MONAI_NETWORKS, MonaiSegmenter
from pipeline.networks.noise import GrainNoise, RicianNoise
from pipeline.networks.slices import SliceThickening

__all__ = [
    "CLASSIFIERS",
    "GENERATORS",
    "NETWORKS",
    "AttentionUNet",
    "CNNClassifier",
    "Classifier",
    "Discriminator",
    "Generator",
    "MonaiSegmenter",
    "Segmenter",
    "build_classifier",
    "build_discriminator",
    "build_generator",
    "build_network",
]

Segmenter: TypeAlias = AttentionUNet | MonaiSegmenter

NETWORKS: dict[str, Callable[[NetworkSection, int, int], Segmenter]] = {
    "attention_unet": AttentionUNet,
    **dict.fromkeys(MONAI_NETWORKS, MonaiSegmenter),
}

CLASSIFIERS: dict[str, Callable[[ClassifierSection, int, int], Classifier]] = {
    "cnn_classifier": CNNClassifier,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "densenet121": densenet121,
    "efficientnet_b0": efficientnet_b0,
}

GENERATORS: dict[str, Callable[[GeneratorSection, int, int], ResidualEncoderDecoder | AttentionUNet]] = {
    "residual_generator": ResidualEncoderDecoder,
    "attention_unet": generating_unet,
}


def build_network(section: NetworkSection, in_channels: int, out_channels: int) -> Segmenter:
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


def build_generator(section: GeneratorSection, channels: int, noise_channels: int = 0) -> AbstractGenerator:
    """A generator around the network that `section` names, with fresh weights from torch's global generator.

    Args:
        section: Name and shape of the network.
        channels: Of an image, without neighbours.
        noise_channels: Channels of random numbers that it sees behind the image.
    """
    seen = channels * (2 * section.neighbours + 1)
    if noise_channels and section.noise == "rician":
        return RicianNoise(GENERATORS[section.name](section, seen, channels), section, channels)
    if noise_channels and section.noise == "slices":
        return SliceThickening(section, channels)
    if noise_channels and section.noise == "grain":
        body = GENERATORS[section.name](section, seen, channels * noise_channels)
        return GrainNoise(body, section, channels, noise_channels)
    stacked = seen + noise_channels
    body = GENERATORS[section.name](section, stacked, channels * (1 + noise_channels))
    return Generator(body, section, channels)


def build_discriminator(section: GeneratorSection, channels: int) -> Discriminator:
    """The discriminator that `section` shapes, with fresh weights from torch's global generator.

    Args:
        section: Its width, levels, norm and range.
        channels: Of an image, without neighbours.
    """
    return Discriminator(section, channels)
