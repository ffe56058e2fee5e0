"""Figures of merit of a classifier with 95 % confidence intervals; what is undefined is absent, never NaN.

Classes exclude each other (targets and predictions are class indices `(N,)`, and of two classes the second is
the positive one), or a case can be of several (`multi_label`: both are `(N, K)` and boolean). Definitions and
sources: `docs/classification.md`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from sklearn.metrics import average_precision_score

from pipeline.reliability import calibration_error, calibration_gaps, truth_table
from pipeline.statistics import NORMAL_95, Difference, Estimate, bootstrap_interval, estimate_share

Floats = NDArray[np.floating]
Table = NDArray[np.bool_]
Targets = NDArray[np.integer] | NDArray[np.bool_]

_RESAMPLES = 1000
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """What is gained by leaving the least sure cases to a person.

    Attributes:
        coverage: Share of the cases answered, 1/N to 1, the surest first, `(N,)`.
        risk: Share of wrong answers among them, `(N,)`.
        area: Mean risk over all coverages (AURC; Geifman et al. 2019, arXiv:1805.08206).
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    area: float


def judge_classes(
    probabilities: Floats, predictions: Targets, targets: Targets, classes: Sequence[str], multi_label: bool
) -> dict[str, Estimate]:
    """All figures that these cases define, by name.

    * `auc`: area under the ROC curve of the positive class of two, else the mean over classes of each against
      the rest, which are `auc/<class>`; only where every class has cases and others have.
    * `accuracy`: share of right answers, `balanced_accuracy`: mean sensitivity of the classes (not of several
      labels), `brier`: mean squared error of the probabilities, summed over classes if there are more than
      two exclusive ones; `ece`: expected calibration error.
    * `sensitivity/<class>`, `specificity/<class>`, `average_precision/<class>`: of the positive class of two,
      else of every class; only where there are cases of it, or of others.

    Args:
        probabilities: `(N, K)`.
        predictions: What was answered.
        targets: What is true.
        classes: K names.
        multi_label: See above.

    Raises:
        ValueError: If there is no case, a probability is not finite, or shapes contradict each other.
    """
    truth = truth_table(targets, len(classes), multi_label)
    answers = truth_table(predictions, len(classes), multi_label)
    stated = np.asarray(probabilities, dtype=np.float64)
    if not truth.size or not truth.shape == answers.shape == stated.shape or not np.isfinite(stated).all():
        shapes = f"{stated.shape}, {answers.shape}, {truth.shape}"
        raise ValueError(f"cases, at least one, need finite probabilities, answers and targets, not {shapes}")
    asked = range(1, 2) if len(classes) == 2 and not multi_label else range(len(classes))
    each = [
        _judge_class(stated[:, k], answers[:, k], truth[:, k], classes[k], with_auc=len(asked) > 1)
        for k in asked
    ]
    auc = estimate_auc(stated[:, asked], truth[:, asked])
    figures = {"auc": auc} if auc is not None else {}
    figures["accuracy"] = _mean_over_cases(1 - case_errors(predictions, targets))
    if not multi_label and truth.any(axis=0).all():
        figures["balanced_accuracy"] = _balanced_accuracy(answers, truth)
    squares = (stated - truth) ** 2
    is_sum = len(asked) > 1 and not multi_label
    figures["brier"] = _mean_over_cases(squares.sum(axis=1) if is_sum else squares.mean(axis=1))
    figures["ece"] = _estimate_ece(stated, truth, multi_label)
    for more in each:
        figures |= more
    return figures


def estimate_auc(scores: Floats, positive: Table) -> Estimate | None:
    """The mean over columns of the areas under their ROC curves, by DeLong's method.

    The variance of one area is that of DeLong et al. (1988, doi:10.2307/2531595), by ranks (Sun and Xu 2014,
    doi:10.1109/LSP.2014.2337313). It is a sum of squares over cases; for a mean of areas each case's terms
    are averaged before they are squared, so that columns may depend on each other. The interval is normal on
    the logit scale (Pepe 2003), which stays within [0, 1]. With one case on a side, or with all pairs in
    order, there is no variance to go by; then it is Wilson's for as many pairs as share no case.

    Args:
        scores: `(N, S)`, higher for positive cases; any scale.
        positive: `(N, S)`.

    Returns:
        The estimate; None if a column has no positive or no negative case.
    """
    num_pairs = int(np.minimum(positive.sum(axis=0), (~positive).sum(axis=0)).min())
    if not num_pairs:
        return None
    area, terms = _mean_delong(scores[np.newaxis], positive)
    error = float(np.linalg.norm(terms))
    if num_pairs == 1 or error == 0 or not 0 < area < 1:
        return estimate_share(area, num_pairs)
    reach = NORMAL_95 * error / (area * (1 - area))
    low, high = special.expit(special.logit(area) + np.array((-reach, reach)))
    return Estimate(area, float(low), float(high))


def compare_auc(first: Floats, second: Floats, positive: Table) -> Difference | None:
    """The difference of areas under ROC curves on the same cases, by DeLong's test for paired curves.

    Both areas are sums over the same cases (see `estimate_auc`), so their difference has, per case, the
    difference of the terms; its variance is their sum of squares (DeLong et al. 1988, doi:10.2307/2531595).
    Several columns (classes), and several trainings of either side, are averaged case by case first.

    Args:
        first: Scores of S trainings, `(S, N, K)`.
        second: Scores of T trainings, `(T, N, K)`.
        positive: `(N, K)`.

    Returns:
        The difference of the mean areas; None if a column has fewer than two cases on a side, which tell
        nothing of the spread. `num_changed` counts cases that moved against others of the other side.
    """
    num_pairs = int(np.minimum(positive.sum(axis=0), (~positive).sum(axis=0)).min())
    if num_pairs < 2:
        return None
    (area, terms), (other_area, other_terms) = (_mean_delong(scores, positive) for scores in (first, second))
    value, shift = other_area - area, other_terms - terms
    error = float(np.linalg.norm(shift))
    least_p = math.ldexp(2.0, -num_pairs)
    if error > _ROUNDING:
        p = float(2 * stats.norm.sf(abs(value) / error))
    else:  # all pairs in order, or all of them the other way round
        p = 1.0 if abs(value) < _ROUNDING else least_p
    changed = int((np.abs(shift) > _ROUNDING).sum())
    reach = NORMAL_95 * error
    return Difference(
        value, max(-1.0, value - reach), min(1.0, value + reach), p, len(positive), changed, 0.0
    )


def case_errors(predictions: Targets, targets: Targets) -> NDArray[np.float64]:
    """Share of each case's answers that are wrong, `(N,)`: 0 or 1, or of its K labels."""
    wrong = np.asarray(predictions) != np.asarray(targets)
    return np.asarray(wrong.reshape(len(wrong), -1).mean(axis=1))


def risk_coverage(confidence: Floats, errors: Floats) -> RiskCoverage:
    """The risk of answering only the surest cases, for any share of them.

    Args:
        confidence: `(N,)`, N at least 1; cases of equal confidence are answered in no order: each counts
            with the mean error of all of them.
        errors: `(N,)`, as `case_errors` gives them.
    """
    levels, groups = np.unique(-np.asarray(confidence), return_inverse=True)
    sizes = np.bincount(groups, minlength=levels.size)
    means = np.bincount(groups, weights=errors) / sizes
    num_answered = np.arange(1, len(errors) + 1)
    risk = np.cumsum(np.repeat(means, sizes)) / num_answered
    return RiskCoverage(num_answered / len(errors), risk, float(risk.mean()))


def _judge_class(
    scores: Floats, answers: NDArray[np.bool_], truth: NDArray[np.bool_], name: str, *, with_auc: bool
) -> dict[str, Estimate]:
    figures = {}
    num_positive, num_negative = int(truth.sum()), int((~truth).sum())
    auc = estimate_auc(scores[:, None], truth[:, None]) if with_auc else None
    if auc is not None:
        figures[f"auc/{name}"] = auc
    if num_positive:
        figures[f"sensitivity/{name}"] = estimate_share(float(answers[truth].mean()), num_positive)
    if num_negative:
        figures[f"specificity/{name}"] = estimate_share(float((~answers[~truth]).mean()), num_negative)
    if num_positive and num_negative:
        # A mean over positive cases of numbers between 0 and 1 varies no more than a share with that mean
        # (Boyd et al. 2013), so that Wilson's interval holds, and is a little too wide.
        area = min(1.0, float(average_precision_score(truth, scores)))
        figures[f"average_precision/{name}"] = estimate_share(area, num_positive)
    return figures


def _delong(scores: Floats, positive: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]]:
    """The area, and per case a term; the sum of their squares is DeLong's variance of the area."""
    ranks = stats.rankdata(scores)
    placements = np.empty(len(scores))
    for side, sign in ((positive, 1), (~positive, -1)):
        # The share of the other side's cases that a case stands on the right side of, ties counting half.
        beyond = (ranks[side] - stats.rankdata(scores[side])) / (~side).sum()
        placements[side] = beyond if sign == 1 else 1 - beyond
    area = float(placements[positive].mean())
    terms = placements - area
    for side in (positive, ~positive):
        terms[side] /= math.sqrt(side.sum() * max(1, side.sum() - 1))
    return area, terms


def _mean_delong(scores: Floats, positive: Table) -> tuple[float, NDArray[np.float64]]:
    """The mean of the areas of all trainings and columns, and the mean of their terms per case."""
    each = [_delong(own[:, k], positive[:, k]) for own in scores for k in range(positive.shape[1])]
    areas, terms = zip(*each, strict=True)
    return float(np.mean(areas)), np.asarray(np.mean(terms, axis=0))


def _balanced_accuracy(answers: Table, truth: Table) -> Estimate:
    """Mean of the classes' sensitivities; their Wilson intervals are joined by squares (Zou, Donner 2008)."""
    each = [estimate_share(float(a[t].mean()), int(t.sum())) for a, t in zip(answers.T, truth.T, strict=True)]
    value = sum(share.value for share in each) / len(each)
    below = math.hypot(*(share.value - share.low for share in each)) / len(each)
    above = math.hypot(*(share.high - share.value for share in each)) / len(each)
    return Estimate(value, value - below, value + above)


def _mean_over_cases(values: NDArray[np.float64]) -> Estimate:
    if np.isin(values, (0.0, 1.0)).all():
        return estimate_share(float(values.mean()), len(values))
    return Estimate(float(values.mean()), *bootstrap_interval(values.tolist(), num_resamples=_RESAMPLES))


def _estimate_ece(probabilities: Floats, truth: Table, multi_label: bool) -> Estimate:
    """The error with a bootstrap interval, the bins being kept.

    Noise in the bins raises the error: a calibrated classifier's is above 0, too. So the lower end is what is
    left after all the noise that resamples show, whatever its sign, and is 0 where noise explains the whole
    error; the upper end is as much higher as noise could have hidden. Both err on the wide side. A single
    case, of which all resamples are the same, has no bounds.
    """
    value = calibration_error(probabilities, truth, multi_label)
    if len(truth) == 1:
        return Estimate(value, -math.inf, math.inf)
    gaps = calibration_gaps(probabilities, truth, multi_label)
    num, rng = len(gaps), np.random.default_rng(0)
    means = np.stack([gaps[rng.integers(num, size=num)].mean(axis=0) for _ in range(_RESAMPLES)])
    noise = means - gaps.mean(axis=0)
    added = float(np.quantile(np.abs(noise).sum(axis=1), 0.975))
    hidden = float(np.quantile(noise @ np.sign(gaps.mean(axis=0)), 0.975))
    return Estimate(value, max(0.0, value - added), min(1.0, value + hidden))
