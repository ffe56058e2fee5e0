"""What the loop asks of a task, and nothing more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pipeline.data.batches import Batch


class AbstractTask(ABC):
    """A task owns its networks, losses and optimizers; the loop owns time, checkpoints and the record.

    Attributes:
        metric: Name of the validation metric it is judged by; larger is better. None if nothing tells which
            weights are best: the last ones are then kept.
        patience: Validations without a better one after which training stops; None if it goes on.
    """

    metric: str | None
    patience: int | None

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """That of the latest step."""

    @abstractmethod
    def training_step(self, batch: Batch, progress: float) -> Mapping[str, Tensor]:
        """One optimizer step: forward, backward, update.

        Args:
            batch: Source patches as the sampler draws them.
            progress: Share of the budget that is used up, 0 to 1; sets the learning rate.

        Returns:
            Losses as detached scalars, still on the device: nobody waits for them here.
        """

    @abstractmethod
    def rehearse(self, batch: Batch) -> None:
        """Takes the memory of a step without learning anything from it; every state stays as it is."""

    @abstractmethod
    def least_bytes(self, shape: Sequence[int]) -> int:
        """What a step takes at the very least, found out without taking it.

        Args:
            shape: `(B, C, *source_size)` of the images of a batch.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Metrics on the validation cases, `metric` among them; empty if there are none."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """What a prediction needs, on the CPU: the averaged weights if there are such."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that must be as before for training to go on as if never interrupted."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
