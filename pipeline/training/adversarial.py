"""What a generative adversarial training has beside its networks: losses, a pool, steps and averages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import EnhancementTrainingSection
from pipeline.precision import autocast, training_dtype
from pipeline.training.optim import AveragedNetwork

_BETAS = (0.5, 0.999)  # as Zhu et al. 2017: a longer memory oscillates


def least_squares(judgement: Tensor, *, is_real: bool) -> Tensor:
    """Mean squared distance of a judgement from 1 for real, else 0 (Mao et al. 2017, arXiv:1611.04076)."""
    return (judgement.float() - float(is_real)).square().mean()


def total_variation(image: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring voxels of `(B, C, …)`, averaged over the axes."""
    return torch.stack([image.diff(dim=axis).abs().mean() for axis in range(2, image.ndim)]).mean()


class ImagePool:
    """Images made earlier, of which a discriminator is shown some instead of new ones.

    It does not forget what fooled it before (Shrivastava et al. 2017, arXiv:1612.07828).

    Args:
        size: Images it holds; 0 gives new ones alone.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def exchange(self, images: Tensor) -> Tensor:
        """As many images as `(B, …)` holds: each new one or, every other time, an old one it replaces.

        Draws from torch's global generator.
        """
        if self.size == 0:
            return images.detach()
        return torch.stack([self._exchange(image) for image in images.detach()])

    def _exchange(self, image: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.clone())
            return image
        if torch.rand(()) < 0.5:
            return image
        place = int(torch.randint(self.size, ()))
        old, self.images[place] = self.images[place], image.clone()
        return old

    def state_dict(self) -> dict[str, Any]:
        """All that it holds."""
        return {"images": torch.stack(self.images).cpu() if self.images else None}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Takes back what `state_dict` gave."""
        held = state["images"]
        self.images = [] if held is None else list(held.to(device))


class Stepper:
    """Steps networks down the gradient of a common loss, by Adam and the schedule of Zhu et al. 2017.

    Args:
        networks: On `device`.
        section: Learning rate, its schedule, precision.
        device: Where the networks are.
        rates: Learning rate of each network at the beginning; None stands for that of the section.

    Attributes:
        dtype: In what the networks compute while they learn.
        learning_rate: That of the first network in the latest step.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        section: EnhancementTrainingSection,
        device: torch.device,
        rates: Sequence[float | None] = (None,),
    ) -> None:
        self.networks = networks
        self.section = section
        self.device = device
        self._rates = [rate or section.learning_rate for rate in rates]
        self.learning_rate = self._rates[0]
        groups = [
            {"params": list(network.parameters()), "lr": rate}
            for network, rate in zip(networks, self._rates, strict=True)
        ]
        self.optimizer = torch.optim.Adam(groups, betas=_BETAS)
        self.dtype = training_dtype(device, mixed=section.mixed_precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def step(self, loss: Tensor, progress: float) -> None:
        """One step; `progress` (0 to 1) sets the learning rate."""
        share = linear_share(self.section, progress)
        self.learning_rate = self._rates[0] * share
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def autocast(self) -> torch.autocast:
        """The precision of a forward pass that is learnt from."""
        return autocast(self.device, self.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on."""
        return {
            "networks": [network.state_dict() for network in self.networks],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        for network, own in zip(self.networks, state["networks"], strict=True):
            network.load_state_dict(own)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


class Averages:
    """Averaged copies of generators, or the generators themselves where none are asked for.

    Args:
        generators: By name.
        decay: Of the average per step; None for no average.
    """

    def __init__(self, generators: Mapping[str, nn.Module], decay: float | None) -> None:
        self.generators = generators
        self.copies = (
            {name: AveragedNetwork(network, decay) for name, network in generators.items()}
            if decay is not None
            else {}
        )

    def update(self) -> None:
        """Moves every average towards its generator."""
        for name, average in self.copies.items():
            average.update(self.generators[name])

    def judged(self, name: str) -> nn.Module:
        """What a prediction uses."""
        return self.copies[name].network if self.copies else self.generators[name]

    def weights(self) -> dict[str, Tensor]:
        """Of all, named `<generator>.<parameter>`, on the CPU."""
        return {
            f"{name}.{parameter}": tensor.detach().cpu()
            for name in self.generators
            for parameter, tensor in self.judged(name).state_dict().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on."""
        return {name: average.state_dict() for name, average in self.copies.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        for name, average in self.copies.items():
            average.load_state_dict(state[name])


def linear_share(section: EnhancementTrainingSection, progress: float) -> float:
    """Share of the learning rate that is left at a share of the budget (0 to 1): 1, then straight to 0."""
    falling = max(0.0, progress - section.constant_fraction) / (1 - section.constant_fraction)
    return 1 - min(1.0, falling)


def rehearsed(networks: Sequence[nn.Module], compute_losses: Callable[[], Sequence[Tensor]]) -> None:
    """Forward and backward of losses without a step; gradients, random states and buffers stay as before."""
    kept = [{name: buffer.clone() for name, buffer in network.named_buffers()} for network in networks]
    with torch.random.fork_rng(device_type="cuda"):  # forks the CPU's generator as well
        for loss in compute_losses():
            loss.backward()
    for network, buffers in zip(networks, kept, strict=True):
        network.zero_grad(set_to_none=True)
        for name, buffer in network.named_buffers():  # what spectral norm counts
            buffer.copy_(buffers[name])
