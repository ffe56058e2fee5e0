"""What every classifier is, whoever drew it: an encoder, a pooling and one fully connected layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class Classifier(nn.Module, ABC):
    """A network with one row of logits per image.

    Attributes:
        encoder: Its modules in the order in which the image passes through them; they are what is frozen.
        classifier: The fully connected layer at the end, one row per output.
    """

    encoder: nn.ModuleList
    classifier: nn.Linear

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """(B, C, …) → logits (B, out_channels), not activated.

        Raises:
            ValueError: If the image has a size that `check_size` refuses.
        """

    @abstractmethod
    def check_size(self, size: Sequence[int]) -> None:
        """Refuses what the network cannot see.

        Args:
            size: Voxels per axis of an image.

        Raises:
            ValueError: If it has another number of axes than the network, or too few voxels.
        """

    @property
    @abstractmethod
    def stages(self) -> list[nn.Module]:
        """The network from input to output, the head last; every parameter is in exactly one stage."""

    @property
    @abstractmethod
    def last_features(self) -> nn.Module:
        """The module whose output is the last features that have places (Grad-CAM looks there)."""

    @property
    @abstractmethod
    def foreign_names(self) -> dict[str, str]:
        """What others who publish weights for it call its parts, and what they are called here."""
