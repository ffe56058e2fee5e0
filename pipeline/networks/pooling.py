"""From features at places to what the whole image shows: pooling, and weights of channels.

Every backward pass is deterministic on a GPU, which those of torch's own adaptive pooling are not.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks.blocks import NEGATIVE_SLOPE

_REDUCTION: Final = 4  # of channels; the paper's 16 is for layers of 256 channels and more


class AveragePooling(nn.Module):
    """The mean over all places."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, …) → (B, C)."""
        return features.flatten(2).mean(2)


class AttentionPooling(nn.Module):
    """The mean over all places, each weighted by what is there.

    Source: Ilse et al. 2018, arXiv:1802.04712, equation 8.

    Args:
        channels: Of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.hidden = nn.Linear(channels, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)  # the softmax would subtract a bias

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, …) → (B, C)."""
        places = features.flatten(2)
        shares = torch.softmax(self.score(torch.tanh(self.hidden(places.mT))), dim=1)
        pooled: Tensor = (places @ shares).squeeze(2)
        return pooled


class SqueezeExcitation(nn.Module):
    """Features with every channel weighted by what the whole image shows (Hu et al. 2018, arXiv:1709.01507).

    Its hidden units are leaky: after an instance norm the means of two images are so much alike that a plain
    ReLU which sleeps for one sleeps for all, and never learns.

    Args:
        channels: Of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // _REDUCTION)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, …) → (B, C, …)."""
        squeezed = functional.leaky_relu(self.squeeze(features.flatten(2).mean(2)), NEGATIVE_SLOPE)
        weights = torch.sigmoid(self.excite(squeezed))
        return features * weights.view(*weights.shape, *(1,) * (features.ndim - 2))
