"""A training that has left the numbers: it is stopped, for nothing brings it back."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from pipeline.errors import ConfigError, Fault


class DivergedError(ConfigError):
    """The weights are no longer numbers; what was kept before is as it was."""


def check_finite(weights: Mapping[str, Tensor], losses: Mapping[str, float], epoch: int) -> None:
    """Refuses to go on with weights that are not numbers.

    Weights, not losses, are looked at: in 16 bits a loss may overflow in a step that is then left out, while
    in 32 a loss that is no number spoils the weights in the same step. They are the same in all processes, so
    that all of them stop.

    Args:
        weights: What would be kept.
        losses: Means of the epoch, to tell of.
        epoch: Its number, from 1.

    Raises:
        DivergedError: If one is infinite or not a number.
    """
    if all(bool(weight.isfinite().all()) for weight in weights.values()):
        return
    wrong = [f"{name} was {value}" for name, value in losses.items() if not math.isfinite(value)]
    told = f" ({', '.join(wrong)})" if wrong else ""
    message = (
        f"the training diverged: after epoch {epoch} the network's weights are no longer numbers{told}. "
        "Lower training.learning_rate and train anew; what earlier epochs kept is as it was"
    )
    raise DivergedError(Fault("training.learning_rate", "diverged", message))
