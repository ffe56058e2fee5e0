"""Enhancement learnt from pairs: plain regression where the truth of every source is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.config import EnhancementJob
from pipeline.data.batches import Batch
from pipeline.data.enhancement_images import EnhancementImage
from pipeline.networks import build_generator
from pipeline.training.adversarial import Averages, Stepper, rehearsed
from pipeline.training.enhancement import FORWARD, distance, generator_bytes, validate_enhancement
from pipeline.training.task import AbstractTask
from transforms.keys import SOURCE, TARGET


class SupervisedEnhancementTask(AbstractTask):
    """One generator fitted to the truth by its L1 distance: what pairs make possible.

    Args:
        job: The complete job.
        num_channels: Of the images.
        validation: Prepared sources held out, possibly none.
        device: Where to compute.
    """

    metric = None
    patience = None

    def __init__(
        self,
        job: EnhancementJob,
        num_channels: int,
        validation: Sequence[EnhancementImage],
        device: torch.device,
    ) -> None:
        self.job = job
        self.validation = validation
        self.device = device
        torch.manual_seed(job.training.seed)
        self.network = build_generator(job.network, num_channels).to(device)
        self.stepper = Stepper([self.network], job.training, device)
        self.averages = Averages({FORWARD: self.network}, job.training.ema_decay)

    @property
    def learning_rate(self) -> float:
        """That of the latest step."""
        return self.stepper.learning_rate

    def training_step(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """One step; see `AbstractTask`."""
        self.network.train()
        loss = self._compute_loss(batch)
        self.stepper.step(loss, progress)
        self.averages.update()
        return {"training/loss": loss.detach()}

    def rehearse(self, batch: Batch) -> None:
        """Forward and backward without a step; see `AbstractTask`."""
        self.network.train()
        rehearsed([self.network], lambda: [self._compute_loss(batch)])

    def least_bytes(self, shape: Sequence[int]) -> int:
        """What a forward pass keeps for the backward pass; see `AbstractTask`."""
        return generator_bytes(self.network, self.stepper, shape)

    def validate(self) -> dict[str, float]:
        """PSNR and SSIM where the truth is known, on the network's grid; see `validate_enhancement`."""
        return validate_enhancement(self.averages.judged(FORWARD), self.job, self.validation, self.device)

    def render(self, batch: Batch) -> dict[str, Tensor]:
        """What becomes of a batch, `(B, C, …)` each by a name for people."""
        source, truth = (batch.tensors[key].to(self.device) for key in (SOURCE, TARGET))
        first = self.job.network.neighbours * truth.shape[1]
        shown = source[:, first : first + truth.shape[1]]
        with torch.no_grad():
            enhanced = self.averages.judged(FORWARD).eval()(source)
        return {"source": shown, "enhanced": enhanced, "truth": truth, "change": enhanced - shown}

    def weights(self) -> dict[str, Tensor]:
        """The generator's, averaged if there is an average."""
        return self.averages.weights()

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on."""
        return {"stepper": self.stepper.state_dict(), "averages": self.averages.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.stepper.load_state_dict(state["stepper"])
        self.averages.load_state_dict(state["averages"])

    def _compute_loss(self, batch: Batch) -> Tensor:
        source, truth = (batch.tensors[key].to(self.device, non_blocking=True) for key in (SOURCE, TARGET))
        with self.stepper.autocast():
            made = self.network(source)
        return distance(made, truth)
