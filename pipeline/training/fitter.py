"""One network being fitted: its optimizer, its averaged weights and its precision, whatever the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.config import FittingSection
from pipeline.errors import ConfigError, Fault
from pipeline.networks.footprint import saved_bytes
from pipeline.precision import autocast, training_dtype
from pipeline.training.distributed import World
from pipeline.training.optim import (
    AveragedNetwork,
    build_optimizer,
    depth_groups,
    freeze_encoder,
    learning_rate,
    set_learning_rate,
)

_Network = TypeVar("_Network", bound=nn.Module)


class Fitter(Generic[_Network]):
    """Steps a network down the gradient of a loss.

    Args:
        network: On `device`, with its first weights.
        encoder: Its levels that may be frozen, finest first.
        stages: All of it from input to output, every parameter in exactly one.
        section: Optimizer, schedule, freezing, clipping, averaging, precision.
        device: Where the network is.
        world: The processes that train together.

    Attributes:
        network: The network that learns.
        dtype: In what it computes while it learns.
        learning_rate: That of the latest step.

    Raises:
        ConfigError: If the network normalises over batches and several processes train it.
    """

    def __init__(
        self,
        network: _Network,
        encoder: Iterable[nn.Module],
        stages: Iterable[nn.Module],
        section: FittingSection,
        device: torch.device,
        world: World,
    ) -> None:
        if world.size > 1 and any(isinstance(module, _BatchNorm) for module in network.modules()):
            message = "this network normalises over a process's own batch; train it in one process"
            raise ConfigError(Fault("network.name", "batch-norm", message))
        self.network = network
        self.encoder = list(encoder)
        self.section = section
        self.device = device
        self.world = world
        self.learning_rate = section.learning_rate
        self.averaged = AveragedNetwork(network, section.ema_decay) if section.ema_decay else None
        self.optimizer = build_optimizer(
            section,
            network.parameters()
            if section.depth_decay == 1
            else depth_groups(list(stages), section.depth_decay),
        )
        self.dtype = training_dtype(device, mixed=section.mixed_precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    @property
    def judged_network(self) -> _Network:
        """The averaged network if there is such, else the one that learns."""
        return self.averaged.network if self.averaged is not None else self.network

    def step(self, compute_loss: Callable[[], Tensor], progress: float) -> Tensor:
        """One step; see `AbstractTask.training_step`. Gives the detached loss."""
        self.learning_rate = learning_rate(self.section, progress)
        set_learning_rate(self.optimizer, self.learning_rate)
        freeze_encoder(self.encoder, self.section, progress)
        self.optimizer.zero_grad(set_to_none=True)
        self._prepare()
        loss = compute_loss()
        self.scaler.scale(loss).backward()
        self.world.sum_gradients(self.network.parameters())
        if self.section.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.section.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update(self.network)
        return loss.detach()

    def rehearse(self, compute_loss: Callable[[], Tensor]) -> None:
        """Forward and backward without a step; see `AbstractTask`."""
        self._prepare()
        kept = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        with torch.random.fork_rng(device_type="cuda"):  # forks the CPU's generator as well
            compute_loss().backward()
        self.optimizer.zero_grad(set_to_none=True)
        for name, buffer in self.network.named_buffers():  # what batch normalisation counts
            buffer.copy_(kept[name])

    def _prepare(self) -> None:
        """Training mode, but for batch normalisation that does not learn: it would go on counting."""
        self.network.train()
        for module in self.network.modules():
            if isinstance(module, _BatchNorm) and not module.weight.requires_grad:
                module.eval()

    def least_bytes(
        self, shape: Sequence[int], size: Sequence[int], forward: Callable[[_Network, Tensor], object]
    ) -> int:
        """Bytes of images `(B, C, …)` and of what `forward` keeps of them, cut to `size` voxels per axis."""
        kept = saved_bytes(self.network, forward, (*shape[:2], *size))
        return kept * self.dtype.itemsize // 4 + 4 * math.prod(shape)

    def autocast(self) -> torch.autocast:
        """The precision of a forward pass that is learnt from."""
        return autocast(self.device, self.dtype)

    def weights(self) -> dict[str, Tensor]:
        """Of the judged network, on the CPU."""
        return {name: tensor.detach().cpu() for name, tensor in self.judged_network.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on."""
        return {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.network.load_state_dict(state["network"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
