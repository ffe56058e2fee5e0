"""Our classifier: the encoder of our segmentation networks, a pooling, and a fully connected layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.classification import ClassifierSection
from pipeline.networks.blocks import Axes, initialise
from pipeline.networks.classifier import Classifier
from pipeline.networks.encoder import build_encoder
from pipeline.networks.pooling import AttentionPooling, AveragePooling, SqueezeExcitation


class CNNClassifier(Classifier):
    """A compact CNN in 2D and 3D; `docs/classification.md` has its picture.

    Its `encoder` has the names and shapes of an attention U-Net's with the same levels, and can start from
    it. Images are (B, C, H, W) or (B, C, H, W, D) of any size that leaves more than one voxel on the coarsest
    grid; strides round up.

    Args:
        section: The shape of the network.
        in_channels: Channels of the image.
        out_channels: Logits per image.
    """

    def __init__(self, section: ClassifierSection, in_channels: int, out_channels: int) -> None:
        super().__init__()
        features = section.features
        self._strides, self._total_stride = section.level_strides, section.total_stride
        self.encoder = build_encoder(section, in_channels)
        # Beside the encoder, whose names stay those of one without them.
        self.excitations = nn.ModuleList(
            SqueezeExcitation(width) if section.squeeze_excitation else nn.Identity() for width in features
        )
        self.pooling = AttentionPooling(features[-1]) if section.pooling == "attention" else AveragePooling()
        self.dropout = nn.Dropout(section.dropout)
        self.classifier = nn.Linear(features[-1], out_channels)
        self.apply(initialise)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, …) → logits (B, out_channels), not activated."""
        self.check_size(image.shape[2:])
        features = image
        for block, excitation, stride in zip(self.encoder, self.excitations, self._strides, strict=True):
            features = excitation(block(_fill(features, stride)))
        logits: Tensor = self.classifier(self.dropout(self.pooling(features)))
        return logits

    def check_size(self, size: Sequence[int]) -> None:
        """Refuses images of another rank, and those that leave a single voxel on the coarsest grid."""
        total = self._total_stride
        if len(size) != len(total):
            raise ValueError(f"this network sees images of {len(total)} axes, not {tuple(size)}")
        if math.prod(math.ceil(n / t) for n, t in zip(size, total, strict=True)) <= 1:
            raise ValueError(
                f"an image of {tuple(size)} leaves a single voxel on the coarsest grid (total stride "
                f"{total}), which instance norm turns to zero; take larger images, or fewer levels"
            )

    @property
    def stages(self) -> list[nn.Module]:
        """The levels, finest first, each with its excitation; then pooling and head."""
        levels = zip(self.encoder, self.excitations, strict=True)
        return [*map(nn.ModuleList, levels), nn.ModuleList([self.pooling, self.classifier])]

    @property
    def last_features(self) -> nn.Module:
        """The features that are pooled."""
        return self.excitations[-1]

    @property
    def foreign_names(self) -> dict[str, str]:
        """Nobody else publishes weights for it."""
        return {}


def _fill(features: Tensor, stride: Axes) -> Tensor:
    """Zeros behind the last voxels, up to whole strides.

    The convolutions of a block see them anyway as their padding; its shortcut would drop those voxels.
    """
    missing = [-n % s for n, s in zip(features.shape[2:], stride, strict=True)]
    if not any(missing):
        return features
    return functional.pad(features, [side for n in reversed(missing) for side in (0, n)])
