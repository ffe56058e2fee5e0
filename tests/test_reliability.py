"""Reliability counts every statement once, knows what is calibrated, and does not depend on order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.reliability import calibration_error, calibration_gaps, reliability, truth_table


def stated_and_true(num, bend=1.0, seed=0):
    """Two classes; the positive one comes true with probability `stated ** bend`."""
    rng = np.random.default_rng(seed)
    stated = rng.random(num)
    truth = rng.random(num) < stated**bend
    return np.stack((1 - stated, stated), axis=1), np.stack((~truth, truth), axis=1)


def test_what_is_calibrated_has_a_small_error_and_what_is_not_a_large_one():
    assert calibration_error(*stated_and_true(20_000), multi_label=False) < 0.012
    # The mean of |p - p³| over uniform p is 1/4.
    assert calibration_error(*stated_and_true(20_000, bend=3.0), multi_label=False) == pytest.approx(
        0.25, abs=0.01
    )


@pytest.mark.parametrize(("num", "num_bins"), [(1, 1), (19, 1), (20, 2), (98, 9), (150, 15), (10_000, 15)])
def test_bins_hold_equal_numbers_and_there_are_fewer_where_cases_are(num, num_bins):
    bins = reliability(*stated_and_true(num), multi_label=False)
    assert (len(bins.num), bins.num.sum()) == (num_bins, num)
    assert np.ptp(bins.num) <= 1
    assert (np.diff(bins.stated) > 0).all()


def test_of_more_classes_the_answer_is_judged_and_of_labels_each():
    truth = truth_table(np.array([0, 1, 2, 2]), 3, multi_label=False)
    probabilities = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.3, 0.6], [0.0, 0.0, 1.0]])
    bins = reliability(probabilities, truth, multi_label=False)
    assert (bins.stated, bins.happened) == (pytest.approx([0.75]), pytest.approx([0.75]))
    bins = reliability(probabilities, truth, multi_label=True)
    assert (bins.stated, bins.happened, bins.num) == (pytest.approx([1 / 3]), pytest.approx([1 / 3]), [12])


probability_tables = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 60), st.integers(2, 4)),
    elements=st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.9, 1.0]),
)


@settings(max_examples=60)
@given(probability_tables, st.booleans(), st.randoms(use_true_random=False))
def test_neither_order_nor_ties_matter_and_gaps_add_up_to_the_error(probabilities, multi_label, random):
    num, num_classes = probabilities.shape
    targets = np.array([random.randrange(num_classes) for _ in range(num)])
    truth = truth_table(targets, num_classes, multi_label=False)
    error = calibration_error(probabilities, truth, multi_label)
    order = np.array(random.sample(range(num), num))
    assert calibration_error(probabilities[order], truth[order], multi_label) == pytest.approx(error)
    assert 0 <= error <= 1
    gaps = calibration_gaps(probabilities, truth, multi_label)
    assert np.abs(gaps.mean(axis=0)).sum() == pytest.approx(error)


@pytest.mark.parametrize(
    ("targets", "num_classes", "multi_label"),
    [
        (np.array([0, 2]), 2, False),
        (np.array([0, -1]), 2, False),
        (np.array([0, 0]), 1, False),
        (np.array([[True, False]]), 2, False),
        (np.array([0, 1]), 2, True),
        (np.array([[1, 0]]), 2, True),
        (np.array([[True, False]]), 3, True),
    ],
)
def test_targets_of_another_form_are_refused(targets, num_classes, multi_label):
    with pytest.raises(ValueError, match="targets are"):
        truth_table(targets, num_classes, multi_label)
