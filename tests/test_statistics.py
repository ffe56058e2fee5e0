"""Intervals behave for any number of cases and any values, and mean what they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from pipeline.statistics import bootstrap_interval, estimate_share, summarise


@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 0.9, 373.1287])
@pytest.mark.parametrize("num", [1, 2, 3, 7, 50])
def test_equal_values_have_an_interval_without_width(value, num):
    assert bootstrap_interval([value] * num) == (value, value)
    summary = summarise([value] * num)
    assert (summary.mean, summary.low, summary.high, summary.num) == (value, value, value, num)
    assert summary.deviation == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(0, 1000), min_size=1, max_size=40))
def test_an_interval_is_ordered_and_lies_within_the_values(values):
    low, high = bootstrap_interval(values, num_resamples=200)
    slack = 1e-9
    assert min(values) - slack <= low <= high <= max(values) + slack


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random(20).tolist()
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_more_confidence_is_wider_and_more_cases_are_narrower():
    values = np.random.default_rng(0).beta(9, 1, 400).tolist()

    def width(*arguments):
        low, high = bootstrap_interval(*arguments)
        return high - low

    assert width(values, 0.5) < width(values, 0.95) < width(values, 0.99)
    assert width(values) < width(values[:20])


def test_a_normal_sample_has_nearly_the_textbook_interval():
    values = np.random.default_rng(1).normal(10, 2, 200)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_intervals_cover_the_true_mean_about_as_often_as_promised():
    rng = np.random.default_rng(2)
    num_covered = 0
    for _ in range(150):
        low, high = bootstrap_interval(rng.beta(8, 1, 30), num_resamples=500)
        num_covered += low <= 8 / 9 <= high
    assert 0.88 <= num_covered / 150 <= 0.99


def test_a_summary_is_the_plain_mean_and_sample_deviation():
    summary = summarise([0.2, 0.4, 0.9])
    assert (summary.mean, summary.num) == (pytest.approx(0.5), 3)
    assert summary.deviation == pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1))
    assert (summary.low, summary.high) == bootstrap_interval([0.2, 0.4, 0.9])
    assert summary.low < summary.mean < summary.high


@pytest.mark.parametrize("values", [[], [0.5, float("nan")], [float("inf")]])
def test_nothing_or_nonsense_is_refused(values):
    with pytest.raises(ValueError, match="finite"):
        summarise(values)


def test_ten_thousand_cases_fit_into_memory():
    low, high = bootstrap_interval(np.random.default_rng(0).random(10_000), num_resamples=1000)
    assert low < 0.5 < high


@pytest.mark.parametrize(("part", "num"), [(0, 1), (1, 1), (0, 30), (7, 9), (500, 1000)])
def test_the_interval_of_a_share_is_scipys_wilson(part, num):
    share = estimate_share(part / num, num)
    expected = binomtest(part, num).proportion_ci(method="wilson")
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert share.low <= share.value <= share.high


@pytest.mark.parametrize(("share", "num"), [(0.5, 0), (1.1, 3), (float("nan"), 3)])
def test_what_is_no_share_is_refused(share, num):
    with pytest.raises(ValueError, match="share"):
        estimate_share(share, num)
