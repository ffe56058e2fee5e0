"""Whether stated probabilities come true: reliability by bins, and the expected calibration error.

What is compared with what came true depends on the question: of two exclusive classes the probability of the
positive one (the second), of more the probability of the answer (the most probable class), and with several
labels the probability of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15
_MIN_PER_BIN = 10

Floats = NDArray[np.floating]
Targets = NDArray[np.integer] | NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Reliability:
    """What was stated and what came true, by bins of rising probability.

    Attributes:
        stated: Mean stated probability of each bin, `(B,)`.
        happened: Share of it that came true, `(B,)`.
        num: Number of statements in it, `(B,)`; none is empty.
    """

    stated: NDArray[np.float64]
    happened: NDArray[np.float64]
    num: NDArray[np.int64]


def truth_table(targets: Targets, num_classes: int, multi_label: bool) -> NDArray[np.bool_]:
    """Which of K classes each case is of, `(N, K)`.

    Args:
        targets: Class indices `(N,)`; `(N, K)` boolean if `multi_label`, and then taken as they are.
        num_classes: K.
        multi_label: Whether a case can be of several classes, or of none.

    Raises:
        ValueError: If the targets have another shape, or an index is no class.
    """
    if multi_label:
        if targets.ndim != 2 or targets.shape[1] != num_classes or targets.dtype != bool:
            raise ValueError(f"targets are boolean, (N, {num_classes}), not {targets.dtype} {targets.shape}")
        return targets.astype(np.bool_)
    if targets.ndim != 1 or not np.isin(targets, np.arange(num_classes)).all() or num_classes < 2:
        raise ValueError(f"targets are class indices below {num_classes} and (N,), not {targets.shape}")
    return np.asarray(targets[:, None] == np.arange(num_classes))


def reliability(probabilities: Floats, truth: NDArray[np.bool_], multi_label: bool) -> Reliability:
    """Bins of equal mass: each holds the same number of statements, but for equal ones, which stay together.

    There are 15 bins, or as many as can hold 10 statements each, and at least one.

    Args:
        probabilities: `(N, K)`, N at least 1.
        truth: `(N, K)`, which classes each case is of.
        multi_label: Whether a case can be of several classes.
    """
    stated, happened = _statements(probabilities, truth, multi_label)
    bins = _equal_mass_bins(stated.ravel())
    num = np.bincount(bins)
    kept = num > 0
    sums = (np.bincount(bins, weights=values.ravel())[kept] for values in (stated, happened))
    mean_stated, share_happened = (total / num[kept] for total in sums)
    return Reliability(mean_stated, share_happened, num[kept])


def calibration_error(probabilities: Floats, truth: NDArray[np.bool_], multi_label: bool) -> float:
    """Expected calibration error: the mean over statements of their bin's |stated − happened|.

    Naeini et al. 2015, with the bins of `reliability` instead of equally wide ones, which are mostly empty.
    """
    bins = reliability(probabilities, truth, multi_label)
    return float(np.average(np.abs(bins.stated - bins.happened), weights=bins.num))


def calibration_gaps(
    probabilities: Floats, truth: NDArray[np.bool_], multi_label: bool
) -> NDArray[np.float64]:
    """What each case adds to the bins' gaps, `(N, B)`: the ECE is the sum over bins of |mean over cases|."""
    stated, happened = _statements(probabilities, truth, multi_label)
    bins = _equal_mass_bins(stated.ravel()).reshape(stated.shape)
    gaps = np.zeros((len(stated), int(bins.max()) + 1))
    np.add.at(gaps, (np.arange(len(stated))[:, None], bins), (happened - stated) / stated.shape[1])
    return gaps


def _statements(
    probabilities: Floats, truth: NDArray[np.bool_], multi_label: bool
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """What was stated and whether it came true, per case and statement, `(N, S)`."""
    stated = np.asarray(probabilities, dtype=np.float64)
    if multi_label:
        return stated, truth
    if stated.shape[1] == 2:
        return stated[:, 1:], truth[:, 1:]
    answers = stated.argmax(axis=1)[:, None]
    return np.take_along_axis(stated, answers, axis=1), np.take_along_axis(truth, answers, axis=1)


def _equal_mass_bins(stated: NDArray[np.float64]) -> NDArray[np.int64]:
    # By the number of smaller values, so that neither equal values nor the order of the cases matter.
    num_bins = min(NUM_BINS, max(1, stated.size // _MIN_PER_BIN))
    return np.searchsorted(np.sort(stated), stated) * num_bins // stated.size
