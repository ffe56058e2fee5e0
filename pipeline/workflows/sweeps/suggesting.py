"""What a sweep tries next, and which trial is not worth its end: Optuna's answers from what is known so far.

No study is stored: it is made anew of the trials' own records, and drawing is seeded by the trial's number.
So a sweep that goes on draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from pipeline.config import Space

_NUM_STARTUP_TRIALS = 5
"""Trials drawn at random, and finished, before the estimator and the pruner have something to go by."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trial.

    Attributes:
        settings: As text by dotted key.
        score: Larger is better; None if it failed.
        course: Validation metric by epoch.
    """

    settings: Mapping[str, str]
    score: float | None
    course: Mapping[int, float]


def suggest(space: Space, seed: int, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """The settings to try next, by a tree-structured Parzen estimator (Bergstra et al. 2011).

    Args:
        space: What can be set.
        seed: Of this trial.
        outcomes: Of all trials before.
    """
    drawn = _study(space, seed, outcomes).ask(_distributions(space)).params
    return {key: _text(space, key, value) for key, value in drawn.items()}


def build_pruner(
    space: Space, settings: Mapping[str, str], outcomes: Sequence[Outcome]
) -> Callable[[float, int], bool]:
    """A function of validation metric and epoch: whether a trial is worse than the median of those before.

    Its best value so far is compared with what finished trials had at the same epoch, from the sixth on.

    Args:
        space: What can be set.
        settings: Of the trial.
        outcomes: Of all trials before.
    """
    study = _study(space, 0, outcomes)
    study.enqueue_trial(_parameters(space, settings))
    trial = study.ask(_distributions(space))

    def is_hopeless(metric: float, epoch: int) -> bool:
        trial.report(metric, epoch)
        return trial.should_prune()

    return is_hopeless


def _study(space: Space, seed: int, outcomes: Sequence[Outcome]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=_NUM_STARTUP_TRIALS),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_NUM_STARTUP_TRIALS),
    )
    for outcome in outcomes:
        study.add_trial(
            create_trial(
                params=_parameters(space, outcome.settings),
                distributions=_distributions(space),
                value=outcome.score,
                intermediate_values=dict(outcome.course),
                state=TrialState.FAIL if outcome.score is None else TrialState.COMPLETE,
            )
        )
    return study


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {
        key: CategoricalDistribution(values) for key, values in space.choices.items()
    }
    for key, span in space.ranges.items():
        if span.is_whole:
            found[key] = IntDistribution(int(span.low), int(span.high), log=span.is_log)
        else:
            found[key] = FloatDistribution(span.low, span.high, log=span.is_log)
    return found


def _parameters(space: Space, settings: Mapping[str, str]) -> dict[str, str | int | float]:
    found: dict[str, str | int | float] = {}
    for key, text in settings.items():
        span = space.ranges.get(key)
        found[key] = text if span is None else int(text) if span.is_whole else span.within(float(text))
    return found


def _text(space: Space, key: str, value: str | float) -> str:
    return str(value) if key in space.choices else space.ranges[key].text(float(value))
