"""Several networks as one module, for what leaves this program."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MeanNetwork(nn.Module):
    """The mean of the logits of networks that see the same image.

    Args:
        networks: With equal inputs and outputs.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(B, K, …)` of windows `(B, C, …)`."""
        return torch.stack([network(image) for network in self.networks]).mean(0)
