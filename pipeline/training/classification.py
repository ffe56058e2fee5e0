"""The classification task: cross-entropy on augmented images, judged by likelihood on those held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import ClassificationJob, flipped_axes
from pipeline.data.batches import Batch, derive_seed
from pipeline.data.class_images import ClassImage
from pipeline.data.class_study import ClassStudy
from pipeline.discrimination import estimate_auc
from pipeline.inference.classifying import compute_logits
from pipeline.networks import Classifier, build_classifier
from pipeline.networks.compiling import compiler_faults
from pipeline.networks.pretrained import Source, load_pretrained
from pipeline.precision import autocast, inference_dtype
from pipeline.training.class_losses import ClassLoss, balance_weights
from pipeline.training.distributed import ALONE, World
from pipeline.training.fitter import Fitter
from pipeline.training.task import AbstractTask
from transforms.augmentation import Augmentation
from transforms.keys import CLASS, IMAGE


class ClassificationTask(AbstractTask):
    """Fits one classifier to images.

    Args:
        job: The complete job.
        study: Classes and channels.
        num_channels: Of what the network sees.
        training: Prepared cases to train on; only their classes are looked at, for their weights.
        validation: Prepared cases held out, possibly none.
        device: Where to compute.
        source: The model it starts from, if any; not needed if a state is loaded anyway.
        world: The processes that train together.
    """

    # Unlike the AUC and the accuracy it still tells networks apart that make hardly any mistake.
    metric = "validation/log_likelihood"

    def __init__(
        self,
        job: ClassificationJob,
        study: ClassStudy,
        num_channels: int,
        training: Sequence[ClassImage],
        validation: Sequence[ClassImage],
        device: torch.device,
        source: Source | None = None,
        world: World = ALONE,
    ) -> None:
        self.job = job
        self.study = study
        self.patience = job.training.early_stopping
        self.validation = validation
        self.device = device
        self.world = world
        section = job.training
        torch.manual_seed(section.seed)
        self.network = build_classifier(job.network, num_channels, len(study.classes)).to(device)
        if source is not None:
            load_pretrained(self.network, source)
        self.fitter = Fitter(self.network, self.network.encoder, self.network.stages, section, device, world)
        # A compiled way forward beside the network, not round it: its weights keep their names.
        self.forward: Callable[[Tensor], Tensor] = (
            torch.compile(self.network.forward) if section.compile else self.network
        )
        targets = torch.stack([image.target for image in training])
        weights = balance_weights(targets, is_multi_label=study.is_multi_label)
        self.loss = ClassLoss(
            weights if section.class_weights == "balanced" else torch.ones_like(weights),
            is_multi_label=study.is_multi_label,
            focal_gamma=section.focal_gamma,
            label_smoothing=section.label_smoothing,
            total=world.total,
        ).to(device)
        self.augmentation = Augmentation(job.augmentation, job.preprocessing.size, job.preprocessing.spacing)

    @property
    def learning_rate(self) -> float:
        """That of the latest step."""
        return self.fitter.learning_rate

    def training_step(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """One step; see `AbstractTask`."""
        return {"training/loss": self.fitter.step(lambda: self._compute_loss(batch), progress)}

    def rehearse(self, batch: Batch) -> None:
        """Forward and backward without a step; see `AbstractTask`."""
        with compiler_faults("training.compile", "set it to false"):
            self.fitter.rehearse(lambda: self._compute_loss(batch))

    def least_bytes(self, shape: Sequence[int]) -> int:
        """What a step takes at the very least; see `AbstractTask`."""
        return self.fitter.least_bytes(shape, self.job.preprocessing.size, Classifier.forward)

    def validate(self) -> dict[str, float]:
        """Mean log-likelihood of what is true, accuracy at even odds, and the AUC where there is one."""
        if not self.validation:
            return {}
        logits = self.validation_logits()
        truth = torch.stack([image.target for image in self.validation]).double()
        if self.study.is_multi_label:
            agreed = truth * 2 - 1
            likelihood = torch.nn.functional.logsigmoid(agreed * logits).mean()
            is_right = (logits > 0) == (truth > 0.5)
        else:
            likelihood = (logits.log_softmax(1) * truth).sum(1).mean()
            is_right = logits.argmax(1) == truth.argmax(1)
        metrics = {
            self.metric: float(likelihood),
            "validation/accuracy": float(is_right.double().mean()),
        }
        is_binary = len(self.study.classes) == 2 and not self.study.is_multi_label
        asked = slice(1, 2) if is_binary else slice(None)
        scores = logits[:, 1:] - logits[:, :1] if is_binary else logits
        auc = estimate_auc(np.asarray(scores), np.asarray(truth[:, asked] > 0.5))
        return metrics if auc is None else metrics | {"validation/auc": auc.value}

    def validation_logits(self) -> Tensor:
        """`(N, K)` float64 on the CPU, in the order of the validation cases."""
        found = torch.zeros(len(self.validation), len(self.study.classes), dtype=torch.float64)
        own = range(self.world.rank, len(self.validation), self.world.size)  # every process judges its share
        images = [self.validation[number].image for number in own]
        if images:
            network, inference = self.fitter.judged_network.eval(), self.job.inference
            dtype = inference_dtype(self.device, mixed=self.job.training.mixed_precision)
            with autocast(self.device, dtype):
                logits = compute_logits(
                    network, images, inference.batch_size, self.device, flipped_axes(self.job)
                )
            found[list(own)] = logits.double()
        return self.world.total(found)

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights if there are such, else the network's."""
        return self.fitter.weights()

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on."""
        return self.fitter.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.fitter.load_state_dict(state)

    def _compute_loss(self, batch: Batch) -> Tensor:
        image, target = (batch.tensors[key].to(self.device, non_blocking=True) for key in (IMAGE, CLASS))
        image = self._augment(image, batch.seeds)
        if self.job.training.mixup:
            image, target = self._mix(image, target, batch.seeds)
        with self.fitter.autocast():
            logits = self.forward(image)
        loss: Tensor = self.loss(logits, target)
        return loss

    def _augment(self, image: Tensor, seeds: Sequence[int]) -> Tensor:
        """The region is moved with the image as a label map is: no noise and no contrast change it."""
        if self.job.preprocessing.shows_region:
            image, region = self.augmentation(image[:, :-1], image[:, -1], seeds)
            return torch.cat([image, region[:, None]], 1)
        nothing = torch.zeros(len(image), *image.shape[2:], dtype=torch.uint8, device=self.device)
        return self.augmentation(image, nothing, seeds)[0]

    def _mix(self, image: Tensor, target: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Each sample with the one before, in shares of its own (Zhang et al. 2018, arXiv:1710.09412)."""
        alpha = self.job.training.mixup
        drawn = [np.random.default_rng(derive_seed(seed, "mixup")).beta(alpha, alpha) for seed in seeds]
        share = torch.tensor(drawn, dtype=torch.float32, device=self.device)
        shares = share.view(-1, *[1] * (image.ndim - 1))
        mixed = shares * image + (1 - shares) * self._previous(image)
        return mixed, share[:, None] * target + (1 - share[:, None]) * self._previous(target)

    def _previous(self, values: Tensor) -> Tensor:
        """What comes before each sample in the batch of all processes; before the first comes the last."""
        lasts = values.new_zeros(self.world.size, *values.shape[1:])
        lasts[self.world.rank] = values[-1]
        return torch.cat([self.world.total(lasts)[[self.world.rank - 1]], values[:-1]])
