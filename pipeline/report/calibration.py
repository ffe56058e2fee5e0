"""How far a classifier's probabilities can be relied on, and what review gains, as a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from pipeline.calibration import Calibration
from pipeline.discrimination import case_errors, risk_coverage
from pipeline.reliability import calibration_error, reliability, truth_table
from pipeline.report.charts import (
    CHANCE,
    GREY,
    POINT,
    save_page,
    shortened,
    style_axes,
    style_unit_axes,
    white_page,
)
from pipeline.statistics import estimate_share
from pipeline.terminology import PALETTE

Floats = NDArray[np.floating]
Targets = NDArray[np.integer] | NDArray[np.bool_]

_BEFORE, _AFTER = PALETTE[5], PALETTE[6]


def draw_calibration(
    path: Path,
    *,
    probabilities: Floats,
    uncalibrated: Floats | None,
    targets: Targets,
    classes: Sequence[str],
    calibration: Calibration,
    title: str,
) -> None:
    """Draws the reliability diagram, and the risk of answering more or fewer cases without a person's review.

    Args:
        path: Where to write; the file is whole or absent.
        probabilities: `(N, K)`, calibrated, N at least 1.
        uncalibrated: The same at temperature 1, or None where they are not known.
        targets: What is true: class indices `(N,)`, or `(N, K)` boolean if several labels are possible.
        classes: K names; of two exclusive ones the second is the positive one.
        calibration: What decides, and calls for review.
        title: Heading.

    Raises:
        ResourceError: If the file cannot be written.
    """
    truth = truth_table(targets, len(classes), calibration.multi_label)
    figure = white_page((9.6, 5.6), title)
    left, right = figure.subplots(1, 2)
    if uncalibrated is not None:
        _draw_reliability(left, uncalibrated, truth, calibration.multi_label, "before")
    after = "after" if uncalibrated is not None else "calibrated"
    _draw_reliability(left, probabilities, truth, calibration.multi_label, after)
    left.plot((0, 1), (0, 1), zorder=0, label="as stated", **CHANCE)
    subject = "the answer" if not calibration.thresholds else "a class"
    if len(calibration.thresholds) == 1 and not calibration.multi_label:
        subject = shortened(classes[1])
        threshold = calibration.thresholds[0]
        left.axvline(threshold, color=GREY, lw=1, label=f"threshold {threshold:.3f}")
    style_unit_axes(left, "Reliability", f"Stated probability of {subject}", "Share that came true")
    errors = case_errors(calibration.decide(probabilities), targets)
    confidence = calibration.confidence(probabilities)
    _draw_risk(right, confidence, errors, calibration.review_below)
    for axes in (left, right):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False, fontsize=9)
    save_page(figure, path)


def _draw_reliability(
    axes: Axes, probabilities: Floats, truth: NDArray[np.bool_], multi_label: bool, name: str
) -> None:
    """A line through the bins; with their intervals, but not those from before, which would cover them."""
    bins = reliability(probabilities, truth, multi_label)
    shares = [estimate_share(float(h), int(n)) for h, n in zip(bins.happened, bins.num, strict=True)]
    reach = [[s.value - s.low for s in shares], [s.high - s.value for s in shares]]
    error = calibration_error(probabilities, truth, multi_label)
    label = f"{name}: expected calibration error {error:.3f}"
    if name == "before":
        style: dict[str, Any] = {"color": _BEFORE, "ls": "dashed", "marker": "s", "mfc": "white"}
    else:
        style = {"color": _AFTER, "yerr": reach, "elinewidth": 0.8, "marker": "o"}
    axes.errorbar(bins.stated, bins.happened, lw=1.4, ms=5, label=label, **style)


def _draw_risk(
    axes: Axes, confidence: NDArray[np.float64], errors: NDArray[np.float64], review_below: float
) -> None:
    curve, is_answered = risk_coverage(confidence, errors), confidence >= review_below
    axes.plot(100 * curve.coverage, 100 * curve.risk, color=_AFTER, lw=1.8, label=f"area {curve.area:.4f}")
    share = float(is_answered.mean())
    if share:
        risk = float(errors[is_answered].mean())
        label = f"review below a confidence of {review_below:.3f}"
        axes.axvline(100 * share, color=GREY, lw=0.9, ls="dashed", label=label)
        label = f"{share:.0%} answered, {risk:.1%} of them wrong (of all: {errors.mean():.1%})"
        axes.plot(100 * share, 100 * risk, color=_BEFORE, label=label, **POINT)
    style_axes(axes)
    # The first few answers jump between 0 and 100 % and would hide the rest.
    settled = curve.risk[len(curve.risk) // 20 :]
    axes.set(xlim=(0, 101), ylim=(0, 100 * min(1.0, max(0.02, 1.3 * float(settled.max())))))
    axes.set_title("Risk and coverage", loc="left", fontsize=11)
    axes.set_xlabel("Cases answered without review, surest first (%)")
    axes.set_ylabel("Wrong answers among them (%)")
