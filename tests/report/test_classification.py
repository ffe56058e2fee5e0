"""Charts of a classifier can be drawn of whatever there is, and show where the answers lie."""

import numpy as np
import pytest
from matplotlib import colors
from PIL import Image

from pipeline.calibration import class_probabilities, fit_calibration
from pipeline.discrimination import judge_classes
from pipeline.report.calibration import draw_calibration
from pipeline.report.charts import curve_styles
from pipeline.report.discrimination import draw_discrimination

ODD_NAMES = ("_hidden", "$x_1", "a rather long name of a finding in the chest", "Größe")


def pixels(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def draw(page, folder, logits, targets, classes, multi_label=False, uncalibrated=True):
    """A page as an array, of a calibration that was fitted on the same cases."""
    calibration = fit_calibration(logits, targets, multi_label, "balanced", 0.8)
    probabilities = calibration.probabilities(logits)
    known = {"probabilities": probabilities, "targets": targets, "classes": classes, "title": "fold, $fold_0"}
    if page == "discrimination":
        predictions = calibration.decide(probabilities)
        figures = judge_classes(probabilities, predictions, targets, classes, multi_label)
        more = {"predictions": predictions, "multi_label": multi_label, "figures": figures}
        draw_discrimination(folder / "page.png", **known, **more)
    else:
        before = class_probabilities(logits, multi_label) if uncalibrated else None
        draw_calibration(folder / "page.png", **known, uncalibrated=before, calibration=calibration)
    return pixels(folder / "page.png")


@pytest.mark.parametrize("page", ["discrimination", "calibration"])
@pytest.mark.parametrize(("num", "num_classes", "multi_label"), [(1, 2, False), (60, 4, True)])
def test_whatever_there_is_can_be_drawn(tmp_path, page, num, num_classes, multi_label):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(num, num_classes)), np.arange(num) % num_classes
    if multi_label:
        targets = rng.random(logits.shape) < 0.2
        targets[:, 0] = False  # nobody has this one
    assert np.ptp(draw(page, tmp_path, logits, targets, ODD_NAMES[:num_classes], multi_label)) > 0


def test_more_classes_than_can_be_told_one_by_one_fit_on_the_page(tmp_path):
    rng = np.random.default_rng(0)
    names = tuple(f"_organ number {n}" for n in range(24))
    page = draw("discrimination", tmp_path, rng.normal(size=(96, 24)), np.arange(96) % 24, names)
    edges = page[:3], page[-3:], page[:, :3], page[:, -3:]
    assert all((edge == 255).all() for edge in edges)


def test_a_perfect_classifier_fills_the_upper_left_corner_and_a_useless_one_does_not(tmp_path):
    blue = np.multiply(colors.to_rgb(next(curve_styles())[0]), 255)
    targets = np.arange(200) % 2
    perfect = np.where(targets[:, None] == [0, 1], 2.0, -2.0)
    useless = np.random.default_rng(0).normal(size=(200, 2))
    shares = []
    for logits in (perfect, useless):
        page = draw("discrimination", tmp_path, logits, targets, ("normal", "ill"))
        roc = page[60 : page.shape[0] // 2, : page.shape[1] // 2]
        rows, columns = np.nonzero((np.abs(roc - blue) < 12).all(axis=2))
        shares.append(np.mean((rows - rows.min() < 25) | (columns - columns.min() < 25)))
    assert shares[0] > 0.99
    assert shares[1] < 0.4


def test_without_uncalibrated_probabilities_there_is_no_curve_from_before(tmp_path):
    rng = np.random.default_rng(0)
    logits, targets = 5 * rng.normal(size=(80, 2)), rng.integers(0, 2, 80)
    orange = np.multiply(colors.to_rgb("#D55E00"), 255)
    found = []
    for uncalibrated in (True, False):
        page = draw("calibration", tmp_path, logits, targets, ("a", "b"), uncalibrated=uncalibrated)
        found.append((np.abs(page[:, :700] - orange) < 12).all(axis=2).sum())
    assert found[0] > 100
    assert found[1] == 0
