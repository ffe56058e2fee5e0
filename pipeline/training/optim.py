"""Optimizers, the learning rate over the budget, and averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from pipeline.config import TrainingSection
from pipeline.training.muon import Muon


def build_optimizer(section: TrainingSection, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Muon, AdamW, or SGD with Nesterov momentum, with the learning rate of progress 0."""
    if section.optimizer == "muon":
        return Muon(parameters, section.learning_rate, section.weight_decay)
    if section.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=section.learning_rate,
            momentum=section.momentum,
            nesterov=section.momentum > 0,
            weight_decay=section.weight_decay,
        )
    return torch.optim.AdamW(parameters, lr=section.learning_rate, weight_decay=section.weight_decay)


def learning_rate(section: TrainingSection, progress: float) -> float:
    """The learning rate when `progress` (0 to 1) of the budget is used up.

    `poly` is (1 - progress)^0.9 as in nnU-Net, `cosine` half a cosine wave; both end at zero.
    """
    if progress < section.warmup_fraction:
        # Never quite zero: the first step shall move something.
        return section.learning_rate * max(progress / section.warmup_fraction, 0.01)
    rest = min(1.0, (progress - section.warmup_fraction) / (1 - section.warmup_fraction))
    factor = (1 - rest) ** 0.9 if section.schedule == "poly" else 0.5 * (1 + math.cos(math.pi * rest))
    return section.learning_rate * factor


_Network = TypeVar("_Network", bound=nn.Module)


class AveragedNetwork(Generic[_Network]):
    """A copy of a network whose weights are an exponential moving average of the original's.

    The decay starts low and rises to its value, so that the random start is soon forgotten.

    Attributes:
        network: The copy, in evaluation mode.
    """

    def __init__(self, network: _Network, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Moves the average towards the original's present weights."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averages: list[Tensor] = list(self.network.parameters())
        currents: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(averages, currents, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Weights and count."""
        return {"weights": self.network.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.network.load_state_dict(state["weights"])
        self.num_updates = state["num_updates"]
