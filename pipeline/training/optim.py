"""Optimizers, the learning rate over budget and depth, what is frozen, and averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from pipeline.config import FittingSection
from pipeline.training.muon import Muon


def build_optimizer(
    section: FittingSection, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]]
) -> torch.optim.Optimizer:
    """Muon, AdamW, or SGD with Nesterov momentum, with the learning rate of progress 0.

    Args:
        section: Which one, and its settings.
        parameters: Of a network, or groups of them as `depth_groups` makes them.
    """
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


def learning_rate(section: FittingSection, progress: float) -> float:
    """The learning rate when `progress` (0 to 1) of the budget is used up.

    `poly` is (1 - progress)^0.9 as in nnU-Net, `cosine` half a cosine wave; both end at zero.
    """
    if progress < section.warmup_fraction:
        # Never quite zero: the first step shall move something.
        return section.learning_rate * max(progress / section.warmup_fraction, 0.01)
    rest = min(1.0, (progress - section.warmup_fraction) / (1 - section.warmup_fraction))
    factor = (1 - rest) ** 0.9 if section.schedule == "poly" else 0.5 * (1 + math.cos(math.pi * rest))
    return section.learning_rate * factor


def depth_groups(stages: Sequence[nn.Module], decay: float) -> list[dict[str, Any]]:
    """A group of parameters per stage, with the factor on its learning rate.

    The last stage has factor 1, each stage before it `decay` times that of the next (Howard and Ruder 2018,
    arXiv:1801.06146).

    Args:
        stages: Of a network, from input to output.
        decay: Above 0, at most 1.
    """
    last = len(stages) - 1
    return [
        {"params": list(stage.parameters()), "factor": decay ** (last - depth)}
        for depth, stage in enumerate(stages)
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group `rate` times its factor, if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


def freeze_encoder(encoder: Sequence[nn.Module], section: FittingSection, progress: float) -> None:
    """Freezes the levels of an encoder that do not learn yet when `progress` of the budget is used up.

    A frozen parameter gets no gradient, and an optimizer passes over what has none: no step, no weight
    decay, no momentum. Gradually, the coarsest level of `n` is set free after an n-th of the time, the next
    finer one after two, and so on.

    Args:
        encoder: Its levels, finest first.
        section: How long, and whether gradually.
        progress: 0 to 1.
    """
    for level, block in enumerate(encoder):
        share = 1 - level / len(encoder) if section.gradual_unfreezing else 1.0
        block.requires_grad_(progress >= share * section.freeze_encoder)


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
        for average, current in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(current)  # batch normalisation's are averages already

    def state_dict(self) -> dict[str, Any]:
        """Weights and count."""
        return {"weights": self.network.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.network.load_state_dict(state["weights"])
        self.num_updates = state["num_updates"]
