"""Intervals behave for any number of cases and any values, and mean what they say."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, rankdata, wilcoxon

from pipeline.statistics import (
    UNKNOWN,
    adjust_holm,
    bootstrap_interval,
    compare_means,
    compare_shares,
    estimate_share,
    interval_text,
    summarise,
)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 0.9, 373.1287])
@pytest.mark.parametrize("num", [2, 3, 7, 50])
def test_equal_values_have_an_interval_without_width(value, num):
    assert bootstrap_interval([value] * num) == (value, value)
    summary = summarise([value] * num)
    assert (summary.mean, summary.low, summary.high, summary.num) == (value, value, value, num)
    assert summary.deviation == pytest.approx(0.0, abs=1e-12)


def test_one_case_says_nothing_of_others():
    one = summarise([0.9])
    assert (one.mean, one.low, one.high) == (0.9, -np.inf, np.inf)
    assert interval_text(one, ".3f") == interval_text(compare_means([0.8], [0.9]), "+.3f") == UNKNOWN
    assert interval_text(summarise([0.9, 0.9]), ".3f") == "0.900 to 0.900"


@settings(max_examples=80)
@given(st.lists(st.floats(0, 1000), min_size=2, max_size=40))
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


def test_signed_ranks_are_those_of_the_textbook_and_of_all_signs():
    """Fisher's maize, as scipy documents it; then every way the signs could have fallen, counted."""
    heights = [6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75]
    assert compare_means([0] * 15, heights).p == pytest.approx(0.041259765625)
    values = np.array([0.03, -0.01, 0.05, 0.05, 0.02, -0.04, 0.07])
    ranks = rankdata(np.abs(values))
    sums = [ranks[np.array(signs)].sum() for signs in product((False, True), repeat=7)]
    seen, middle = ranks[values > 0].sum(), ranks.sum() / 2
    share = np.mean([abs(s - middle) >= abs(seen - middle) - 1e-9 for s in sums])
    assert compare_means([0.9] * 7, 0.9 + values).p == pytest.approx(share)


@pytest.mark.parametrize("num", [1, 5, 30, 50, 80])
def test_signed_ranks_are_scipys_where_none_are_tied(num):
    values = np.random.default_rng(num).normal(0.2, 1, num)
    assert compare_means(np.zeros(num), values).p == pytest.approx(wilcoxon(np.round(values, 9)).pvalue)


def test_a_difference_of_means_is_the_bootstraps_and_turns_with_the_sides():
    rng = np.random.default_rng(4)
    first = rng.uniform(0.6, 0.9, 40)
    second = first + rng.normal(0.02, 0.03, 40)
    there, back = compare_means(first, second), compare_means(second, first)
    assert (there.low, there.high) == bootstrap_interval(np.round(second - first, 9).tolist())
    assert there.value == pytest.approx((second - first).mean(), abs=1e-9) == -back.value
    assert there.p == back.p and there.low < there.value < there.high


def test_cases_without_a_difference_say_nothing():
    same = compare_means([0.1 + 0.2, 0.7, 0.8], [0.3, 0.7, 0.8])  # 0.1 + 0.2 is not 0.3 in floats
    assert (same.value, same.low, same.high, same.p, same.num_changed, same.least_p) == (0, 0, 0, 1, 0, 1)
    few = compare_means([0.5] * 30, [0.5] * 26 + [0.6, 0.7, 0.8, 0.9])
    assert (few.num, few.num_changed) == (30, 4) and few.p == few.least_p == 2 / 2**4


def test_a_true_zero_is_called_a_difference_as_often_as_promised():
    rng = np.random.default_rng(5)
    ps = [compare_means(np.zeros(12), np.round(rng.normal(0, 1, 12), 1)).p for _ in range(100)]
    assert 0.01 <= np.mean(np.array(ps) <= 0.05) <= 0.09


def paired_answers(both, only_first, only_second, neither):
    counts = both, only_first, only_second, neither
    return np.repeat([1, 1, 0, 0], counts).astype(bool), np.repeat([1, 0, 1, 0], counts).astype(bool)


@pytest.mark.parametrize(
    ("counts", "value", "low", "high"),
    [
        ((36, 12, 2, 0), 0.2, 0.0569, 0.3404),  # Newcombe 1998
        ((1, 1, 7, 12), -0.286, -0.507, -0.026),  # Fagerland, Lydersen, Laake 2014
    ],
)
def test_shares_have_the_published_intervals_and_mcnemars_p(counts, value, low, high):
    first, second = paired_answers(*counts)
    found = compare_shares(second, first)
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high), abs=5e-4)
    assert found.p == pytest.approx(binomtest(counts[1], counts[1] + counts[2]).pvalue)


def test_equal_answers_leave_a_width_and_no_doubt():
    right = np.array([True] * 5)
    same = compare_shares(right, right)
    assert (same.value, same.p, same.num_changed) == (0, 1, 0)
    assert same.low < 0 < same.high


def test_holm_steps_down_as_in_the_textbook():
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([0.4, 0.4]) == [0.8, 0.8] and adjust_holm([0.9, 0.7]) == [1, 1]
    assert adjust_holm([]) == []


@pytest.mark.parametrize("compare", [compare_means, compare_shares])
@pytest.mark.parametrize(("first", "second"), [([], []), ([1], [1, 0])])
def test_what_is_not_paired_is_refused(compare, first, second):
    with pytest.raises(ValueError, match=r"value|case"):
        compare(first, second)
