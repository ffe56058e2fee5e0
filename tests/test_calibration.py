"""A calibration finds what is off, reaches what it was asked for, and survives whatever it is fitted on."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import special

from pipeline.calibration import (
    Calibration,
    class_probabilities,
    fit_calibration,
    operating_point,
    review_threshold,
)


def drawn(num, num_classes, temperature, multi_label=False, seed=0):
    """Logits that are right after division by `temperature`, and targets drawn accordingly."""
    rng = np.random.default_rng(seed)
    right = rng.normal(0, 2, (num, num_classes))
    probabilities = class_probabilities(right, multi_label)
    if multi_label:
        return right * temperature, rng.random(right.shape) < probabilities
    return right * temperature, (rng.random((num, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)


FORMS = [(2, False), (5, False), (3, True)]


@pytest.mark.parametrize(("num_classes", "multi_label"), FORMS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found_and_what_was_off_becomes_calibrated(
    num_classes, multi_label, temperature
):
    logits, targets = drawn(6000, num_classes, temperature, multi_label)
    calibration = fit_calibration(logits, targets, multi_label, "balanced", 0.9)
    assert calibration.temperature == pytest.approx(temperature, rel=0.08)
    assert calibration.ece_after < 0.03
    assert (calibration.ece_before > 0.04) == (temperature != 1.0)


def test_a_temperature_changes_no_order_and_no_best_class():
    logits, targets = drawn(300, 4, 2.5)
    calibration = fit_calibration(logits, targets, False, "balanced", 1.0)
    probabilities = calibration.probabilities(logits)
    assert (calibration.decide(probabilities) == logits.argmax(axis=1)).all()
    assert probabilities.sum(axis=1) == pytest.approx(1)
    logits, targets = drawn(300, 2, 2.5)
    calibration = fit_calibration(logits, targets, False, "balanced", 1.0)
    order = np.argsort(logits[:, 1] - logits[:, 0])
    assert (np.diff(calibration.probabilities(logits)[order, 1]) >= 0).all()


def test_few_cases_that_are_all_right_do_not_make_it_certain():
    for num in (2, 20, 200):
        targets = np.arange(num) % 2
        logits = np.where(targets[:, None] == [0, 1], 2.0, -2.0)
        calibration = fit_calibration(logits, targets, False, "balanced", 0.9)
        true = calibration.probabilities(logits)[np.arange(num), targets]
        assert true == pytest.approx((num + 1) / (num + 2), abs=1e-4)
        assert (calibration.decide(calibration.probabilities(logits)) == targets).all()


scores = arrays.arrays(
    np.float64, st.integers(1, 40), elements=st.sampled_from([0.0, 1e-300, 0.2, 0.5, 0.7, 1 - 2**-53, 1.0])
)


@settings(max_examples=150)
@given(scores, st.floats(0, 1), st.randoms(use_true_random=False))
@example(np.full(100, 0.5), 0.55, None)
def test_the_operating_point_is_the_largest_that_finds_enough(scores, min_sensitivity, random):
    positive = np.array([random is None or random.random() < 0.5 for _ in scores])
    threshold = operating_point(scores, positive, min_sensitivity)
    if not positive.any():
        assert threshold == 0.5
        return

    def sensitivity(cut):
        return (scores[positive] >= cut).mean()

    assert sensitivity(threshold) >= min(min_sensitivity, 1) - 1e-9
    higher = scores[scores > threshold]
    lowest_called = higher.min() if higher.size else np.inf
    larger = scores[scores > lowest_called]
    next_cut = larger.min() if larger.size else np.inf
    assert sensitivity(next_cut) < max(min_sensitivity, 1e-12)


def test_a_share_that_is_a_whole_number_of_cases_is_not_rounded_up():
    assert operating_point(np.arange(100) / 100, np.ones(100, bool), 0.55) == pytest.approx(0.445)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_of_calibrated_probabilities_the_balanced_point_is_the_share_of_positive_cases(share):
    rng = np.random.default_rng(0)
    positive = rng.random(4000) < share
    log_likelihood_ratio = 2 * rng.normal(2 * positive - 1)  # of normal distributions with means -1 and 1
    scores = special.expit(special.logit(share) + log_likelihood_ratio)
    assert operating_point(scores, positive, "balanced") == pytest.approx(share, abs=0.03)


def test_how_many_cases_of_a_class_there_are_does_not_move_the_balanced_point():
    scores = np.array([0.1, 0.3, 0.45, 0.6, 0.4, 0.7, 0.9])
    positive = np.arange(7) >= 4
    once = operating_point(scores, positive, "balanced")
    often = operating_point(np.repeat(scores, 20), np.repeat(positive, 20), "balanced")
    rare = np.where(positive, 20, 60)
    assert operating_point(np.repeat(scores, rare), np.repeat(positive, rare), "balanced") == pytest.approx(
        often, abs=0.01
    )
    assert scores.min() < once < scores.max()


@settings(max_examples=40)
@given(scores, st.randoms(use_true_random=False))
def test_the_balanced_point_lies_among_the_scores_or_is_one_half(scores, random):
    positive = np.array([random.random() < 0.5 for _ in scores])
    threshold = operating_point(scores, positive, "balanced")
    assert threshold == 0.5 or scores.min() - 1e-9 <= threshold <= scores.max() + 1e-9
    if positive.all() or not positive.any():
        assert threshold == 0.5


def test_scores_that_fall_with_the_truth_leave_the_threshold_at_one_half():
    assert operating_point(np.linspace(0.1, 0.3, 9), np.arange(9) < 4, "balanced") == 0.5


def test_the_most_probable_class_needs_no_cases():
    assert operating_point(np.array([0.2, 0.9]), np.array([False, True]), "most_probable") == 0.5


def test_a_threshold_lies_in_the_middle_of_the_gap():
    logits_apart, positive = np.array([0.1, 0.2, 0.6, 0.9]), np.array([False, False, True, True])
    assert operating_point(logits_apart, positive, 0.5) == pytest.approx(0.75)
    assert operating_point(logits_apart, positive, 1.0) == pytest.approx(0.4)


@settings(max_examples=150)
@given(scores, st.floats(0.01, 1))
def test_the_coverage_is_reached_and_no_more_is_answered_than_needed(confidence, coverage):
    threshold = review_threshold(confidence, coverage)
    answered = confidence >= threshold
    assert answered.mean() >= coverage - 1e-9
    fewer = confidence > confidence[answered].min()
    assert fewer.mean() < coverage


def test_a_full_coverage_calls_nobody():
    assert review_threshold(np.array([0.6, 0.9]), 1.0) == 0
    assert review_threshold(np.array([0.5] * 10 + [0.9]), 0.9) == 0


@pytest.mark.parametrize("threshold", [0.0, 1e-300, 0.1, 0.5, 0.9, 1.0])
def test_confidence_is_least_at_the_threshold_and_grows_to_both_sides(threshold):
    calibration = Calibration(False, 1.0, (threshold,), 0.0, 1.0, 10, 0.1, 0.1)
    positive = np.unique([0, *np.linspace(0, 1, 101), threshold])
    probabilities = np.stack((1 - positive, positive), axis=1)
    confidence = calibration.confidence(probabilities)
    assert confidence[positive == threshold] == pytest.approx(0.5)
    assert (confidence >= 0.5).all()
    assert (np.diff(confidence[positive >= threshold]) >= 0).all()
    assert (np.diff(confidence[positive <= threshold]) <= 0).all()
    assert confidence[(positive != threshold) & np.isin(positive, (0, 1))] == pytest.approx(1.0)
    if threshold == 0.5:
        assert confidence == pytest.approx(probabilities.max(axis=1))


def test_the_least_sure_label_decides_and_of_more_classes_the_most_probable():
    calibration = Calibration(True, 1.0, (0.5, 0.2), 0.7, 1.0, 10, 0.1, 0.1)
    probabilities = np.array([[0.9, 0.0], [0.9, 0.2], [0.35, 1.0]])
    assert calibration.confidence(probabilities) == pytest.approx([0.9, 0.5, 0.65])
    assert calibration.decide(probabilities).tolist() == [[True, False], [True, True], [False, True]]
    assert calibration.needs_review(probabilities).tolist() == [False, True, True]
    calibration = Calibration(False, 1.0, (), 0.7, 1.0, 10, 0.1, 0.1)
    assert calibration.confidence(np.array([[0.2, 0.5, 0.3]])) == pytest.approx([0.5])


@pytest.mark.parametrize(("num_classes", "multi_label"), FORMS)
def test_a_fit_answers_the_coverage_and_survives_json(num_classes, multi_label):
    logits, targets = drawn(97, num_classes, 2.0, multi_label)
    calibration = fit_calibration(logits, targets, multi_label, 0.9, 0.8)
    review = calibration.needs_review(calibration.probabilities(logits))
    assert review.sum() == 97 - np.ceil(0.8 * 97)
    assert len(calibration.thresholds) == {2: 1, 5: 0, 3: 3}[num_classes]
    assert Calibration.from_mapping(json.loads(json.dumps(calibration.to_mapping()))) == calibration
    assert calibration.num_cases == 97


@settings(max_examples=40)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(0, 4), st.integers(2, 3)),
        elements=st.sampled_from([-1e4, -1.0, 0.0, 1.0, 1e4]),
    ),
    st.booleans(),
    st.sampled_from(["most_probable", "balanced", 0.0, 0.9, 1.0]),
    st.randoms(use_true_random=False),
)
def test_whatever_it_is_fitted_on_it_answers(logits, multi_label, aim, random):
    num, num_classes = logits.shape
    targets = np.array([random.randrange(num_classes) for _ in range(num)], dtype=np.int64)
    if multi_label:
        targets = targets[:, None] == np.arange(num_classes)
    calibration = fit_calibration(logits, targets, multi_label, aim, 0.9)
    probabilities = calibration.probabilities(logits)
    assert np.isfinite(probabilities).all()
    assert len(calibration.decide(probabilities)) == num
    assert np.isfinite(calibration.confidence(probabilities)).all()
    if num:
        assert calibration.needs_review(probabilities).mean() <= 0.1 + 1e-9


@pytest.mark.parametrize("targets", [[0], [1], [0, 0, 0], [1, 1, 1]])
def test_one_class_alone_leaves_the_threshold_at_one_half(targets):
    logits = np.random.default_rng(0).normal(size=(len(targets), 2))
    assert fit_calibration(logits, np.array(targets), False, "balanced", 0.9).thresholds == (0.5,)


def test_without_cases_or_differences_nothing_is_changed():
    nothing = fit_calibration(np.zeros((0, 2)), np.zeros(0, np.int64), False, 0.9, 0.9)
    assert nothing == Calibration(False, 1.0, (0.5,), 0.0, 0.9, 0, None, None)
    equal = fit_calibration(np.full((8, 2), 3.0), np.arange(8) % 2, False, "balanced", 0.9)
    assert (equal.temperature, equal.thresholds, equal.review_below) == (1.0, (0.5,), 0.0)


@pytest.mark.parametrize(
    ("logits", "targets"),
    [([[0.0, np.nan]], [0]), ([[0.0, np.inf]], [1]), ([[0.0, 1.0]], [0, 1])],
)
def test_nonsense_is_refused(logits, targets):
    with pytest.raises(ValueError, match="finite logits"):
        fit_calibration(np.array(logits), np.array(targets), False, "balanced", 0.9)


@pytest.mark.parametrize(
    "change", [{"temperature": 0.0}, {"temperature": np.inf}, {"thresholds": (1.5,)}, {"review_below": -1.0}]
)
def test_a_calibration_that_makes_no_sense_cannot_be_made(change):
    calibration = fit_calibration(np.eye(2), np.arange(2), False, "balanced", 0.9)
    with pytest.raises(ValueError, match="not"):
        Calibration.from_mapping({**calibration.to_mapping(), **change})
