"""The segmentation task: Dice and cross-entropy on augmented patches, judged by Dice on whole volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import Job
from pipeline.data.datasets import Batch, PreparedCase
from pipeline.inference.labelling import Labeller, autocast_type
from pipeline.labels import LabelContract
from pipeline.metrics import label_map_dice
from pipeline.networks import AttentionUNet, build_network
from pipeline.training.losses import DeepSupervision, DiceCrossEntropy
from pipeline.training.optim import AveragedNetwork, build_optimizer, learning_rate
from pipeline.training.task import AbstractTask
from pipeline.volume import Grid
from transforms.augmentation import Augmentation
from transforms.keys import IMAGE, LABEL
from transforms.preprocessing import Prepared


class SegmentationTask(AbstractTask):
    """Fits one network to label maps.

    Args:
        job: The complete job.
        contract: Names and values of the labels.
        num_channels: Of the images.
        validation: Prepared cases held out, possibly none.
        device: Where to compute.
    """

    metric = "validation/dice/mean"

    def __init__(
        self,
        job: Job,
        contract: LabelContract,
        num_channels: int,
        validation: Sequence[PreparedCase],
        device: torch.device,
    ) -> None:
        self.job = job
        self.contract = contract
        self.validation = validation
        self.device = device
        torch.manual_seed(job.training.seed)
        self.network = build_network(job.network, num_channels, len(contract.channel_values)).to(device)
        self.averaged = (
            AveragedNetwork(self.network, job.training.ema_decay) if job.training.ema_decay else None
        )
        self.optimizer = build_optimizer(job.training, self.network.parameters())
        self.learning_rate = job.training.learning_rate
        self.loss = DeepSupervision(DiceCrossEntropy(is_regions=contract.regions is not None))
        self.augmentation = Augmentation(job.augmentation, job.training.patch_size, job.preprocessing.spacing)
        self.targets = _build_target_table(contract).to(device)
        self.autocast_type = autocast_type(device) if job.training.mixed_precision else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.autocast_type == torch.float16)

    def training_step(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """One step; see `AbstractTask`."""
        self.learning_rate = learning_rate(self.job.training, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._compute_loss(batch)
        self.scaler.scale(loss).backward()
        if self.job.training.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.job.training.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update(self.network)
        return {"training/loss": loss.detach()}

    def rehearse(self, batch: Batch) -> None:
        """Forward and backward without a step; see `AbstractTask`."""
        with torch.random.fork_rng(device_type="cuda"):  # forks the CPU's generator as well
            self._compute_loss(batch).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def validate(self) -> dict[str, float]:
        """Mean Dice per structure over the validation cases, on the network's grid."""
        if not self.validation:
            return {}
        labeller = self._build_labeller()
        dice = [self._validate_case(labeller, prepared) for prepared in self.validation]
        metrics = {f"validation/dice/{name}": float(np.mean([d[name] for d in dice])) for name in dice[0]}
        return metrics | {self.metric: float(np.mean(list(metrics.values())))}

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights if there are such, else the network's."""
        return {name: tensor.detach().cpu() for name, tensor in self._judged_network().state_dict().items()}

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

    def _compute_loss(self, batch: Batch) -> Tensor:
        image, label = (batch.tensors[key].to(self.device, non_blocking=True) for key in (IMAGE, LABEL))
        image, label = self.augmentation(image, label, batch.seeds)
        self.network.train()
        with self._autocast():
            logits = self.network.forward_deep(image)
        loss: Tensor = self.loss(logits, self._build_target(label))
        return loss

    def _judged_network(self) -> AttentionUNet:
        return self.averaged.network if self.averaged is not None else self.network

    def _build_labeller(self) -> Labeller:
        # Post-processing belongs to the patient's grid, where the kept checkpoint is judged.
        section = self.job.inference.model_copy(update={"largest_component": ()})
        return Labeller(
            [self._judged_network().eval()],
            self.contract,
            section,
            self.job.inference.window_size or self.job.training.patch_size,
            self.device,
            mixed_precision=self.job.training.mixed_precision,
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=self.autocast_type, enabled=self.autocast_type is not None
        )

    def _build_target(self, label: Tensor) -> Tensor:
        if self.contract.regions is None:
            return label.long()
        return self.targets[label.long()].movedim(-1, 1).float()

    def _validate_case(self, labeller: Labeller, prepared: PreparedCase) -> dict[str, float]:
        height, width, depth = prepared.label.shape
        grid = Grid((height, width, depth), prepared.affine)
        predicted = labeller.label(Prepared(prepared.image, prepared.affine), grid).array
        reference = np.asarray(self.contract.values, dtype=np.uint16)[prepared.label.numpy()]
        return label_map_dice(predicted, reference, self.contract.structures)


def _build_target_table(contract: LabelContract) -> Tensor:
    """`(num_label_indices, K)`: which regions a label index belongs to."""
    regions = (contract.regions or {}).values()
    return torch.tensor([[value in region for region in regions] for value in contract.values])
