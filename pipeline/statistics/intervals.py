"""A figure found on some cases, and within what bounds it is on all cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_CONSTANT = 1e-12
"""Spread, relative to the largest value or 1, below which values are one value with rounding noise."""
UNKNOWN = "unknown from one case"
_BATCH_VALUES = 4_000_000
"""Resampled values held in memory at once."""


class Interval(Protocol):
    """Whatever has a 95 % confidence interval; one without bounds where nothing is known."""

    @property
    def low(self) -> float:
        """Lower end."""

    @property
    def high(self) -> float:
        """Upper end."""


NORMAL_95 = float(stats.norm.ppf(0.975))
"""Standard errors on either side of a normal 95 % interval."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure found on some cases, and the 95 % confidence interval of what it is on all cases.

    Attributes:
        value: The figure.
        low: Lower end of the interval.
        high: Upper end of it.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A metric over cases.

    Attributes:
        mean: Arithmetic mean.
        deviation: Sample standard deviation (divisor n - 1); 0 for a single case.
        low: Lower end of the 95 % confidence interval of the mean.
        high: Upper end of it.
        num: Number of cases.
    """

    mean: float
    deviation: float
    low: float
    high: float
    num: int

    @property
    def estimate(self) -> Estimate:
        """The mean with its interval."""
        return Estimate(self.mean, self.low, self.high)


def interval_text(found: Interval, show: str | Callable[[float], str]) -> str:
    """`low to high`, or that a single case leaves it unknown.

    Args:
        found: A figure with its interval.
        show: Format of a number, such as `.4f`, or what makes a text of it.
    """
    if math.isinf(found.low) or math.isinf(found.high):
        return UNKNOWN
    low, high = (format(end, show) if isinstance(show, str) else show(end) for end in (found.low, found.high))
    return f"{low} to {high}"


def summarise(values: Sequence[float]) -> Summary:
    """Mean, deviation and confidence interval of `values`, one per case.

    Raises:
        ValueError: If there is no value, or one is not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    low, high = bootstrap_interval(values)
    deviation = float(sample.std(ddof=1)) if sample.size > 1 else 0.0
    return Summary(clipped_mean(sample), deviation, low, high, sample.size)


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Confidence interval of the mean over cases.

    Bias-corrected and accelerated bootstrap (Efron 1987, doi:10.1080/01621459.1987.10478410), which follows
    the skew of Dice and distances. Values that are all the same have that value twice; a single one says
    nothing of other cases, and its interval has no bounds.

    Args:
        values: One finite value per case.
        confidence: Share of repetitions whose interval covers the true mean.
        num_resamples: Bootstrap samples.
        seed: The same seed gives the same interval.

    Returns:
        Its lower and upper end, within the range of `values`; of a single value minus and plus infinity.

    Raises:
        ValueError: If there is no value, or one is not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError("an interval needs at least one value, and finite ones")
    if sample.size == 1:
        return -math.inf, math.inf
    if np.ptp(sample) <= _CONSTANT * max(1.0, float(np.abs(sample).max())):
        return clipped_mean(sample), clipped_mean(sample)
    interval = stats.bootstrap(
        (sample,),
        np.mean,
        confidence_level=confidence,
        n_resamples=num_resamples,
        batch=max(1, _BATCH_VALUES // sample.size),
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def estimate_share(share: float, num: int) -> Estimate:
    """Wilson's interval of a share of `num` independent cases (1927, doi:10.1080/01621459.1927.10502953).

    Unlike the normal interval it stays within [0, 1] and keeps a width where all cases agree: 5 of 5 is
    [0.57, 1].

    Raises:
        ValueError: If there is no case, or `share` is none.
    """
    if num < 1 or not 0 <= share <= 1:
        raise ValueError(f"a share lies between 0 and 1 and is of one case at least, not {share} of {num}")
    shrinkage = 1 + NORMAL_95**2 / num
    centre = (share + NORMAL_95**2 / (2 * num)) / shrinkage
    half = NORMAL_95 * math.sqrt(share * (1 - share) / num + (NORMAL_95 / (2 * num)) ** 2) / shrinkage
    # Clipped, because rounding must not leave the share outside where it is 0 or 1.
    return Estimate(share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)))


def clipped_mean(sample: NDArray[np.float64]) -> float:
    """The mean of `(N,)` values, at least one; rounding does not take that of equal ones off their value."""
    return float(np.clip(sample.mean(), sample.min(), sample.max()))
