"""Whether one answer to the same cases is better than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.statistics.intervals import bootstrap_interval, clipped_mean, estimate_share

_DECIMALS = 9
"""Of differences; tables hold six digits."""
_MOST_COUNTED = 50


@dataclass(frozen=True, slots=True)
class Difference:
    """How one figure differs between two answers to the same cases.

    Attributes:
        value: The second's figure minus the first's, on these cases.
        low: Lower end of the 95 % confidence interval of what it is on all cases.
        high: Upper end of it.
        p: Probability of a difference as large or larger, either way, if there is none in truth.
        num: Cases that both answered.
        num_changed: How many of them differ, and so speak for one side.
        least_p: The smallest p that so many changed cases could have given.
    """

    value: float
    low: float
    high: float
    p: float
    num: int
    num_changed: int
    least_p: float


def compare_means(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The difference of means of paired values, tested by Wilcoxon's signed ranks.

    The interval is the bootstrap's of the mean difference (`bootstrap_interval`). The test (Wilcoxon 1945,
    doi:10.2307/3001968) asks whether differences lie symmetrically around 0; it leaves out cases without a
    difference, and is exact for up to 50 others, else normal. The two can disagree: a few large differences
    move the mean, many small ones the ranks.

    Args:
        first: One finite value per case.
        second: The same cases in the same order.

    Raises:
        ValueError: If there is no case, the numbers of cases differ, or a value is not finite.
    """
    pairs = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if pairs[0].shape != pairs[1].shape:
        raise ValueError(f"pairs need as many values on both sides, not {len(first)} and {len(second)}")
    # Rounded, because 0.3 - 0.2 and 0.2 - 0.1 are the same difference.
    differences = np.round(pairs[1] - pairs[0], _DECIMALS)
    low, high = bootstrap_interval(differences.tolist())
    changed = differences[differences != 0]
    p, least_p = _signed_rank_p(changed), _least_p(changed.size)
    return Difference(clipped_mean(differences), low, high, p, differences.size, changed.size, least_p)


def compare_shares(first: Sequence[bool], second: Sequence[bool]) -> Difference:
    """The difference of shares of right answers to the same cases, by McNemar's exact test.

    Only cases that one got right and the other wrong say which is better; if neither is, each falls to either
    side with probability one half (McNemar 1947, doi:10.1007/BF02295996). The interval is Newcombe's (1998,
    Statist. Med. 17:2635, method 10): Wilson's of both shares, joined with their correlation; it keeps a
    width where all agree.

    Raises:
        ValueError: If there is no case, or the numbers of cases differ.
    """
    sides = np.asarray(first, dtype=np.bool_), np.asarray(second, dtype=np.bool_)
    if not sides[0].size or sides[0].shape != sides[1].shape:
        raise ValueError(f"pairs need a case and answers on both sides, not {len(first)} and {len(second)}")
    num = sides[0].size
    lost, gained = int((sides[0] & ~sides[1]).sum()), int((~sides[0] & sides[1]).sum())
    both, neither = int((sides[0] & sides[1]).sum()), int((~sides[0] & ~sides[1]).sum())
    p = float(stats.binomtest(gained, lost + gained).pvalue) if lost + gained else 1.0
    before, after = (estimate_share(float(side.mean()), num) for side in sides)
    scale = math.sqrt((both + lost) * (gained + neither) * (both + gained) * (lost + neither))
    excess = both * neither - lost * gained
    # Newcombe's continuity correction keeps a positive correlation from being overstated.
    correlation = (max(excess - num / 2, 0.0) if excess > 0 else excess) / scale if scale else 0.0

    def joined(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))

    value = after.value - before.value
    low = value - joined(after.value - after.low, before.high - before.value)
    high = value + joined(after.high - after.value, before.value - before.low)
    return Difference(value, low, high, p, num, lost + gained, _least_p(lost + gained))


def adjust_holm(ps: Sequence[float]) -> list[float]:
    """The p of several tests, so that by 0.05 at most one study in twenty calls anything by mistake.

    Holm's step-down (1979, jstor.org/stable/4615733): the smallest times their number, the next times one
    less, and so on, none below one before it. It holds however the tests depend on each other.
    """
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = highest
    return adjusted


def _signed_rank_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p of the sum of the ranks of positive differences, none of which is 0.

    Counted over all ways that the signs could have fallen, with the ranks as they are: exact with ties too,
    for which scipy tries 2**N permutations (a second for 12 cases) or goes over to the normal distribution.
    """
    if differences.size > _MOST_COUNTED:
        return float(stats.wilcoxon(differences).pvalue)
    ranks = np.rint(2 * stats.rankdata(np.abs(differences))).astype(
        np.int64
    )  # doubled, so that they are whole
    ways = np.ones(1)
    for rank in ranks.tolist():
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    distance = np.abs(2 * np.arange(ways.size) - ranks.sum())
    return float(ways[distance >= distance[ranks[differences > 0].sum()]].sum() / ways.sum())


def _least_p(num_changed: int) -> float:
    """Of a two-sided test by signs or signed ranks: all changes go one way."""
    return min(1.0, math.ldexp(2.0, -num_changed))
