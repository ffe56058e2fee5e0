"""How a budget is divided into epochs, and how often is validated."""

from __future__ import annotations

import math

from pipeline.planning.choices import Choice, Choices

_NUM_EPOCHS, _MOST_VALIDATIONS, _VALIDATION_SHARE = 50, 25, 0.1


def choose_epochs(num_steps: float) -> Choice[int]:
    """Steps of an epoch, a round number where it is large.

    Args:
        num_steps: Expected of the whole budget.
    """
    exact = num_steps / _NUM_EPOCHS
    return Choice(
        10 * round(exact / 10) if exact > 20 else max(1, round(exact)), f"about {_NUM_EPOCHS} epochs"
    )


def pace(steps_per_epoch: int, step_s: float, validation_s: float) -> Choices:
    """Validates as often as a tenth of the budget allows, and not more often than 25 times.

    Only how two times relate decides, so that it stays the same on a machine that is busy with other things.

    Args:
        steps_per_epoch: As planned, 50 epochs to the budget.
        step_s: Seconds of a training step.
        validation_s: Seconds of a validation of all held-out cases.
    """
    training_share = (1 - _VALIDATION_SHARE) / _VALIDATION_SHARE
    every = math.ceil(training_share * validation_s / (steps_per_epoch * step_s))
    every = min(_NUM_EPOCHS, max(_NUM_EPOCHS // _MOST_VALIDATIONS, every))
    reason = "as often as a tenth of the budget allows" if validation_s else "no case validates"
    return {"training.validate_every": Choice(every, reason)}
