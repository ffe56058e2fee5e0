"""How well a classifier tells classes apart: curves, counts and figures of merit, as a PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from pipeline.reliability import truth_table
from pipeline.report.charts import (
    CHANCE,
    GREY,
    POINT,
    curve_styles,
    name_entries,
    save_page,
    shortened,
    style_unit_axes,
    white_page,
)
from pipeline.statistics import Estimate, interval_text

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]
Targets = NDArray[np.integer] | Flags

_OVERALL = {
    "auc": "Area under the ROC curve",
    "average_precision": "Average precision",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "brier": "Brier score",
    "ece": "Expected calibration error",
}
_PER_CLASS = {"auc": "AUC", "sensitivity": "Sens.", "specificity": "Spec.", "average_precision": "Av. prec."}
_MOST_ROWS = 14
"""Classes told one by one; more would be too small to read, and stand in the record."""


def draw_discrimination(
    path: Path,
    *,
    probabilities: Floats,
    predictions: Targets,
    targets: Targets,
    classes: Sequence[str],
    multi_label: bool,
    figures: Mapping[str, Estimate],
    title: str,
) -> None:
    """Draws ROC and precision-recall curves, who was taken for what, and the figures of merit.

    Dots on the curves are where the answers lie; of more than two exclusive classes the most probable one is
    answered, so that a dot can lie off its class's curve. Classes without cases, or without others, have no
    curve.

    Args:
        path: Where to write; the file is whole or absent.
        probabilities: `(N, K)`.
        predictions: What was answered: class indices `(N,)`, or `(N, K)` boolean if `multi_label`.
        targets: What is true, in the same form.
        classes: K names; of two exclusive ones the second is the positive one.
        multi_label: Whether a case can be of several classes.
        figures: As `discrimination.judge_classes` gives them.
        title: Heading.

    Raises:
        ResourceError: If the file cannot be written.
    """
    truth, answers = (truth_table(t, len(classes), multi_label) for t in (targets, predictions))
    first = 1 if len(classes) == 2 and not multi_label else 0
    figure = white_page((9.6, 9.4), title)
    (roc, precision), (confusion, table) = figure.subplots(2, 2)
    handles: dict[str, Line2D] = {}
    for k, (colour, dash) in zip(range(first, len(classes)), curve_styles(), strict=False):
        if 0 < truth[:, k].sum() < len(truth):
            style: dict[str, Any] = {"color": colour, "ls": dash, "lw": 1.8}
            _draw_roc(roc, probabilities[:, k], answers[:, k], truth[:, k], style)
            _draw_precision(precision, probabilities[:, k], answers[:, k], truth[:, k], style)
            handles[classes[k]] = Line2D([], [], **style)
    roc.plot((0, 1), (0, 1), zorder=0, **CHANCE)
    style_unit_axes(roc, "ROC", "1 − specificity (false alarms)", "Sensitivity")
    if first:
        precision.axhline(truth[:, 1].mean(), zorder=0, **CHANCE)
    precise = "Positive predictive value (precision)"
    style_unit_axes(precision, "Precision and recall", "Sensitivity (recall)", precise)
    _add_legend(figure, handles)
    _draw_counts(confusion, answers, truth, [shortened(name) for name in classes], multi_label)
    _write_figures(table, figures, classes[first:])
    save_page(figure, path)


def _add_legend(figure: Figure, handles: Mapping[str, Line2D]) -> None:
    handles = {
        **handles,
        "answers given": Line2D([], [], color=GREY, **POINT),
        "what guessing gives": Line2D([], [], **CHANCE),
    }
    num_columns = max(1, 100 // (6 + max(map(len, handles))))
    legend = figure.legend(
        list(handles.values()),
        [""] * len(handles),
        loc="outside lower center",
        ncols=num_columns,
        frameon=False,
        fontsize=9,
    )
    name_entries(legend, list(handles))


def _draw_roc(
    axes: Axes,
    scores: Floats,
    answers: Flags,
    truth: Flags,
    style: Mapping[str, Any],
) -> None:
    false_alarms, found, _ = roc_curve(truth, scores)
    axes.plot(false_alarms, found, **style)
    axes.plot(answers[~truth].mean(), answers[truth].mean(), color=style["color"], **POINT)


def _draw_precision(
    axes: Axes,
    scores: Floats,
    answers: Flags,
    truth: Flags,
    style: Mapping[str, Any],
) -> None:
    precision, found, _ = precision_recall_curve(truth, scores)
    axes.plot(found, precision, drawstyle="steps-post", **style)
    if answers.any():
        axes.plot(answers[truth].mean(), truth[answers].mean(), color=style["color"], **POINT)


def _draw_counts(axes: Axes, answers: Flags, truth: Flags, names: Sequence[str], multi_label: bool) -> None:
    """A confusion matrix, or what became of each label; the darker, the larger the share of its cases."""
    if multi_label:
        columns: Sequence[str] = ("found", "missed", "false alarm", "rightly not")
        parts = (truth & answers, truth & ~answers, ~truth & answers, ~truth & ~answers)
        counts = np.stack([part.sum(axis=0) for part in parts], axis=1)
        wholes = np.stack([side.sum(axis=0) for side in (truth, truth, ~truth, ~truth)], axis=1)
    else:
        columns = names
        counts = truth.T.astype(int) @ answers.astype(int)
        wholes = np.broadcast_to(counts.sum(axis=1, keepdims=True), counts.shape)
    shares = counts / np.maximum(wholes, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if len(names) <= _MOST_ROWS:
        _write_counts(axes, counts, shares)
    size, angle = (9, 35) if len(columns) <= _MOST_ROWS else (6, 90)
    tilt: dict[str, Any] = {"rotation": angle, "ha": "right", "rotation_mode": "anchor"}
    tilt = tilt if columns is names and len(columns) > 3 else {}
    axes.set_xticks(range(len(columns)), columns, fontsize=size, parse_math=False, **tilt)
    axes.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    axes.set_title("Answers by label" if multi_label else "Confusion matrix", loc="left", fontsize=11)
    axes.set_xlabel("" if multi_label else "Answer")
    axes.set_ylabel("" if multi_label else "Truth")


def _write_counts(axes: Axes, counts: NDArray[np.int64], shares: Floats) -> None:
    num_rows = len(counts)
    size = 12 if num_rows <= 4 else 9 if num_rows <= 8 else 7
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        text = f"{count}\n{share:.0%}" if num_rows <= 8 else f"{count}"
        colour = "white" if share > 0.55 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def _write_figures(axes: Axes, figures: Mapping[str, Estimate], classes: Sequence[str]) -> None:
    """A table of the figures with their intervals, and one of each class's values if there are several."""
    own = f"/{classes[0]}" if len(classes) == 1 else None
    rows = []
    for key, name in _OVERALL.items():
        found = figures.get(key) or figures.get(f"{key}{own}")
        if found is not None:
            rows.append((name, f"{found.value:.3f}", interval_text(found, ".3f")))
    axes.set_axis_off()
    axes.set_title("Figures of merit (95 % confidence interval)", loc="left", fontsize=11)
    step = min(0.075, 1 / (len(rows) + 3 + (0 if own else min(len(classes), _MOST_ROWS))))
    size = 10 if own else 8.5
    y = 0.96
    if own is not None:
        _write_row(
            axes, y, (f"of {shortened(classes[0], 40)} as the positive class",), (0.0,), size, color=GREY
        )
        y -= step
    for cells in rows:
        _write_row(axes, y, cells, (0.0, 0.7, 1.0), size)
        y -= step
    if own is None:
        places = (0.0, 0.46, 0.63, 0.8, 1.0)
        _write_row(axes, y - step / 2, ("", *_PER_CLASS.values()), places, size, color=GREY)
        y -= 1.5 * step
        for name in classes[:_MOST_ROWS]:
            found_of = [figures.get(f"{key}/{name}") for key in _PER_CLASS]
            values = ("–" if found is None else f"{found.value:.3f}" for found in found_of)
            _write_row(axes, y, (shortened(name), *values), places, size)
            y -= step
        if len(classes) > _MOST_ROWS:
            _write_row(axes, y, (f"and {len(classes) - _MOST_ROWS} more",), (0.0,), size, color=GREY)


def _write_row(
    axes: Axes, y: float, cells: Sequence[str], places: Sequence[float], size: float, color: str = "black"
) -> None:
    """The first cell flush left, the others flush right at their places."""
    for column, (cell, x) in enumerate(zip(cells, places, strict=True)):
        side = "right" if column else "left"
        axes.text(x, y, cell, ha=side, va="center", fontsize=size, color=color, parse_math=False)
