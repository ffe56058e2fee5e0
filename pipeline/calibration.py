"""From logits to calibrated probabilities, decisions and calls for review, fitted on validation cases.

Classes exclude each other (softmax, targets are class indices `(N,)`, and of two classes the second is the
positive one), or a case can be of several (`multi_label`: sigmoid, targets are `(N, K)` and boolean).
Definitions, sources and what they cannot do: `docs/classification.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special
from sklearn.linear_model import LogisticRegression

from pipeline.reliability import calibration_error, truth_table

Floats = NDArray[np.floating]
Targets = NDArray[np.integer] | NDArray[np.bool_]
Aim = float | Literal["most_probable", "balanced"]
"""What an operating point is for; a number: to find at least this share of the positive cases."""

_TEMPERATURES = (0.01, 100.0)
_CERTAINTY = 1e-12
"""Probabilities nearer to 0 or 1 are as far away as this: log-odds stay finite."""
_ROUNDING = 1e-9
"""Slack in counting cases: 55 % of 100 is 55, not 55.00000000000001."""


@dataclass(frozen=True)
class Calibration:
    """What turns logits into answers, and how it was found.

    Attributes:
        multi_label: Whether a case can be of several classes.
        temperature: What logits are divided by.
        thresholds: Calibrated probability from which on a case is called positive: one for the positive class
            of two, one per class if `multi_label`, none for more exclusive classes (the most probable wins).
        review_below: Confidence below which a person should look.
        coverage: Share of the validation cases that was to be answered without review.
        num_cases: Validation cases that it was fitted on; 0 if there were none and nothing is calibrated.
        ece_before: Expected calibration error on them at temperature 1; None without cases.
        ece_after: The same at `temperature`.

    Raises:
        ValueError: If temperature, a threshold or a share is none.
    """

    multi_label: bool
    temperature: float
    thresholds: tuple[float, ...]
    review_below: float
    coverage: float
    num_cases: int
    ece_before: float | None
    ece_after: float | None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"a temperature is a positive number, not {self.temperature}")
        shares = (*self.thresholds, self.review_below, self.coverage)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"thresholds, review_below and coverage lie between 0 and 1, not {shares}")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Calibration:
        """What `to_mapping` gave, also after a passage through JSON."""
        return cls(**{**mapping, "thresholds": tuple(mapping["thresholds"])})

    def to_mapping(self) -> dict[str, Any]:
        """Numbers, a list, booleans and None, by attribute."""
        return {**asdict(self), "thresholds": list(self.thresholds)}

    def probabilities(self, logits: Floats) -> NDArray[np.float64]:
        """Calibrated probabilities `(N, K)` of logits `(N, K)`."""
        return class_probabilities(logits, self.multi_label, self.temperature)

    def decide(self, probabilities: Floats) -> Targets:
        """What is answered: class indices `(N,)`, or `(N, K)` boolean if `multi_label`."""
        if self.multi_label:
            return np.asarray(probabilities >= np.asarray(self.thresholds))
        if self.thresholds:
            return np.asarray(probabilities[:, 1] >= self.thresholds[0], dtype=np.int64)
        return np.asarray(np.argmax(probabilities, axis=1), dtype=np.int64)

    def confidence(self, probabilities: Floats) -> NDArray[np.float64]:
        """How sure the answers are, `(N,)`.

        Of more than two exclusive classes: the largest probability. With a threshold t, a probability p is
        first moved to q = p(1−t) / (p(1−t) + (1−p)t), which is p where t is one half, one half where p is t,
        and 0 or 1 where p is. It is the probability that p would be if the classes were as frequent as makes
        t the best threshold for counting errors (Elkan 2001). The confidence is the larger of q and 1−q:
        0.5 at the threshold, 1 at certainty on either side. Of several labels the least sure one counts.
        """
        if not self.thresholds:
            return np.asarray(probabilities.max(axis=1), dtype=np.float64)
        positive = np.asarray(probabilities if self.multi_label else probabilities[:, 1:], dtype=np.float64)
        thresholds = np.asarray(self.thresholds)
        of_it, of_others = positive * (1 - thresholds), (1 - positive) * thresholds
        both = of_it + of_others
        # Both are 0 only where the probability and its threshold are 0 or 1 together.
        moved = np.divide(of_it, both, out=np.full_like(both, 0.5), where=both > 0)
        return np.asarray(np.maximum(moved, 1 - moved).min(axis=1))

    def needs_review(self, probabilities: Floats) -> NDArray[np.bool_]:
        """Which cases a person should look at, `(N,)`."""
        return np.asarray(self.confidence(probabilities) < self.review_below)


def fit_calibration(
    logits: Floats, targets: Targets, multi_label: bool, aim: Aim, coverage: float
) -> Calibration:
    """Fits temperature, operating points and the call for review, in this order, on validation cases.

    Args:
        logits: `(N, K)`, finite; N may be 0: nothing is then calibrated, thresholds are 0.5 and no case is
            called for review.
        targets: See above.
        multi_label: See above.
        aim: See `operating_point`.
        coverage: Share of the cases to be answered without review; see `review_threshold`.

    Raises:
        ValueError: If a logit is not finite, or shapes contradict each other.
    """
    truth = truth_table(targets, logits.shape[1], multi_label)
    if len(truth) != len(logits) or not np.isfinite(logits).all():
        raise ValueError(f"each of {len(truth)} targets needs a row of finite logits, not {logits.shape}")
    temperature = fit_temperature(logits, truth, multi_label)
    before, after = (class_probabilities(logits, multi_label, t) for t in (1.0, temperature))
    columns = range(truth.shape[1]) if multi_label else (1,) if truth.shape[1] == 2 else ()
    thresholds = tuple(operating_point(after[:, k], truth[:, k], aim) for k in columns)
    errors = (calibration_error(p, truth, multi_label) if len(p) else None for p in (before, after))
    unreviewed = Calibration(multi_label, temperature, thresholds, 0.0, coverage, len(truth), *errors)
    review_below = review_threshold(unreviewed.confidence(after), coverage)
    return Calibration.from_mapping({**unreviewed.to_mapping(), "review_below": review_below})


def class_probabilities(logits: Floats, multi_label: bool, temperature: float = 1.0) -> NDArray[np.float64]:
    """Softmax, or sigmoid if `multi_label`, of `logits / temperature`, `(N, K)`."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    return np.asarray(special.expit(scaled) if multi_label else special.softmax(scaled, axis=1))


def fit_temperature(logits: Floats, truth: NDArray[np.bool_], multi_label: bool) -> float:
    """The temperature with the smallest negative log-likelihood (Guo et al. 2017, arXiv:1706.04599).

    With logits that separate the classes, the likelihood grows without end as the temperature falls, and a
    handful of cases would make every answer certain. So the targets are those of Platt (1999): of M answers
    between J alternatives, the true one gets (M + 1) / (M + J) instead of 1 and every other 1 / (M + J). A
    perfect validation set of 20 cases then ends at a mean probability near 21/22, while 500 cases hardly
    notice. The result lies within [0.01, 100] and is 1 where no other is better (no cases, equal logits).

    Args:
        logits: `(N, K)`.
        truth: `(N, K)`, which classes each case is of.
        multi_label: Whether these are independent questions; each label of each case is then an answer.
    """
    scores = np.asarray(logits, dtype=np.float64)
    if multi_label:  # a sigmoid is the softmax of a logit and 0
        scores = np.stack((np.zeros_like(scores), scores), axis=-1).reshape(-1, 2)
        truth = np.stack((~truth, truth), axis=-1).reshape(-1, 2)
    num_answers, num_alternatives = scores.shape
    if not num_answers:
        return 1.0
    soft = (num_answers * truth + 1) / (num_answers + num_alternatives)

    def loss(log_temperature: float) -> float:
        # Convex in 1 / temperature, so there is one minimum.
        log_probabilities = special.log_softmax(scores / math.exp(log_temperature), axis=1)
        return float(-(soft * log_probabilities).sum(axis=1).mean())

    low, high = map(math.log, _TEMPERATURES)
    best = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(best.x) if best.fun < loss(0.0) - 1e-12 else 1.0


def operating_point(scores: Floats, positive: NDArray[np.bool_], aim: Aim) -> float:
    """The score from which on a case is called positive.

    Args:
        scores: `(N,)`, calibrated probabilities.
        positive: `(N,)`, which cases are positive.
        aim: `most_probable` is 0.5. `balanced` estimates where sensitivity + specificity is largest (Youden
            1950, doi:10.1002/1097-0142): where a logistic regression on the log-odds, both classes having the
            same weight, is undecided. A number takes the largest cut that finds at least this share of the
            positive cases, and one of them in any case, halfway to the next lower score.

    Returns:
        The threshold; 0.5 where the cases cannot tell: no positive one, or to balance no negative one or
        scores that do not rise with the truth.
    """
    if aim == "most_probable" or not positive.any():
        return 0.5
    if aim == "balanced":
        return _balanced_point(np.asarray(scores, dtype=np.float64), positive)
    num_found = max(1, math.ceil(aim * int(positive.sum()) - _ROUNDING))
    return _below(np.unique(scores), float(np.sort(scores[positive])[-num_found]))


def review_threshold(confidence: Floats, coverage: float) -> float:
    """The confidence below which a case is called for review, halfway to the next lower one.

    At least `coverage` of the cases reach it, and no higher threshold, of those that tell the cases apart,
    does so; 0 where all must be answered.
    """
    num_answered = math.ceil(coverage * len(confidence) - _ROUNDING)
    if not num_answered:
        return 0.0
    levels = np.unique(confidence)
    last = float(np.sort(confidence)[-num_answered])
    return _below(levels, last) if last > levels[0] else 0.0


def _balanced_point(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """All cases have a say in it, unlike in the best cut of a curve, which the few next to it decide."""
    odds = special.logit(np.clip(scores, _CERTAINTY, 1 - _CERTAINTY))
    centre, width = odds.mean(), odds.std()
    if positive.all() or width < _ROUNDING:
        return 0.5
    model = LogisticRegression(class_weight="balanced").fit(((odds - centre) / width)[:, None], positive)
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    return float(special.expit(centre - width * offset / slope)) if slope > _ROUNDING else 0.5


def _below(levels: Floats, level: float) -> float:
    """The middle between `level` and the next lower of the sorted `levels`, or 0 if it is the lowest."""
    index = int(np.searchsorted(levels, level))
    lower = float(levels[index - 1]) if index else 0.0
    middle = (lower + level) / 2
    return middle if middle > lower else level  # between neighbouring floats there is none
