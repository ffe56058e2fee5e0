"""MONAI's classifiers, cut into an encoder and a head as ours are.

Their weights are random; `pipeline.networks.foreign` reads others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.efficientnet import EfficientNetBN
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from pipeline.config.classification import ClassifierSection
from pipeline.networks.classifier import Classifier
from pipeline.networks.pooling import AveragePooling

# By the names that MONAI gives them: what follows one another in its forward pass, down to the last features.
_RESNET = (("conv1", "bn1", "act", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
_DENSENET = (
    ("features.conv0", "features.norm0", "features.relu0", "features.pool0"),
    ("features.denseblock1", "features.transition1"),
    ("features.denseblock2", "features.transition2"),
    ("features.denseblock3", "features.transition3"),
    ("features.denseblock4", "features.norm5", "class_layers.relu"),
)
_EFFICIENTNET = (
    ("_conv_stem_padding", "_conv_stem", "_bn0", "_swish"),
    *((f"_blocks.{number}",) for number in range(7)),
    ("_conv_head_padding", "_conv_head", "_bn1", "_swish"),
)


class MonaiClassifier(Classifier):
    """One of MONAI's networks; it computes what that computes.

    Args:
        network: Of MONAI; its modules are taken over.
        levels: Names of its modules in the order of its forward pass, level by level.
        head: Name of its fully connected layer.
        dimensions: 2 or 3.
        smallest: Voxels per axis that it needs.
        dropout: Share of the pooled features that is dropped.
    """

    def __init__(
        self,
        network: nn.Module,
        levels: Sequence[Sequence[str]],
        head: str,
        dimensions: int,
        smallest: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self._dimensions, self._smallest = dimensions, smallest
        self._foreign_names = {head: "classifier"}
        self.encoder = nn.ModuleList()
        for level, names in enumerate(levels):
            short = {name: name.rpartition(".")[2] for name in names}
            parts = OrderedDict((short[name], network.get_submodule(name)) for name in names)
            self.encoder.append(nn.Sequential(parts))
            self._foreign_names |= {name: f"encoder.{level}.{short[name]}" for name in names}
        self.pooling = AveragePooling()
        self.dropout = nn.Dropout(dropout)
        classifier = network.get_submodule(head)
        assert isinstance(classifier, nn.Linear)
        self.classifier = classifier

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, …) → logits (B, out_channels), not activated."""
        self.check_size(image.shape[2:])
        features = image
        for level in self.encoder:
            features = level(features)
        logits: Tensor = self.classifier(self.dropout(self.pooling(features)))
        return logits

    def check_size(self, size: Sequence[int]) -> None:
        """Refuses images of another rank, and those of which its strides would leave nothing."""
        if len(size) != self._dimensions:
            raise ValueError(f"this network sees images of {self._dimensions} axes, not {tuple(size)}")
        if min(size) < self._smallest:
            raise ValueError(
                f"this network needs {self._smallest} voxels along every axis; the image has {tuple(size)}"
            )

    @property
    def stages(self) -> list[nn.Module]:
        """The levels, finest first, and the head."""
        return [*self.encoder, self.classifier]

    @property
    def last_features(self) -> nn.Module:
        """The features that are pooled."""
        return self.encoder[-1]

    @property
    def foreign_names(self) -> dict[str, str]:
        """MONAI's names, which for ResNets are torchvision's, timm's and MedicalNet's too."""
        return self._foreign_names


def resnet18(section: ClassifierSection, in_channels: int, out_channels: int) -> MonaiClassifier:
    """ResNet-18 (He et al. 2016, arXiv:1512.03385)."""
    return _resnet("basic", [2, 2, 2, 2], section.dimensions, in_channels, out_channels)


def resnet50(section: ClassifierSection, in_channels: int, out_channels: int) -> MonaiClassifier:
    """ResNet-50 (He et al. 2016, arXiv:1512.03385), with the stride in the middle of a block."""
    return _resnet("bottleneck", [3, 4, 6, 3], section.dimensions, in_channels, out_channels)


def densenet121(section: ClassifierSection, in_channels: int, out_channels: int) -> MonaiClassifier:
    """DenseNet-121 (Huang et al. 2017, arXiv:1608.06993)."""
    network = DenseNet(section.dimensions, in_channels, out_channels)
    return MonaiClassifier(network, _DENSENET, "class_layers.out", section.dimensions, smallest=29)


def efficientnet_b0(section: ClassifierSection, in_channels: int, out_channels: int) -> MonaiClassifier:
    """EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946)."""
    network = EfficientNetBN(
        "efficientnet-b0",
        pretrained=False,
        spatial_dims=section.dimensions,
        in_channels=in_channels,
        num_classes=out_channels,
    )
    return MonaiClassifier(network, _EFFICIENTNET, "_fc", section.dimensions, smallest=32, dropout=0.2)


def _resnet(
    block: str, layers: list[int], dimensions: int, in_channels: int, out_channels: int
) -> MonaiClassifier:
    # As in the paper and in torchvision, whose weights it takes. MONAI's defaults keep the first stride at 1
    # and give the projections a bias; its shortcut "A" would let no gradient through.
    network = ResNet(
        block,
        layers,
        [64, 128, 256, 512],
        spatial_dims=dimensions,
        n_input_channels=in_channels,
        conv1_t_stride=2,
        num_classes=out_channels,
        bias_downsample=False,
    )
    return MonaiClassifier(network, _RESNET, "fc", dimensions)
