"""Figures of merit agree with independent code, their intervals mean what they say, nothing is ever NaN."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import norm
from sklearn import metrics

from pipeline.discrimination import case_errors, compare_auc, estimate_auc, judge_classes, risk_coverage
from pipeline.reliability import truth_table


def two_normals(num_positive, num_negative, distance, seed=0, decimals=3):
    """Scores of positive cases first; rounded, so that some are equal."""
    rng = np.random.default_rng(seed)
    scores = np.concatenate((rng.normal(distance, 1, num_positive), rng.normal(0, 1, num_negative)))
    return np.round(scores, decimals), np.arange(num_positive + num_negative) < num_positive


def pairwise_delong(scores, positive):
    """The area and its variance by all pairs, as DeLong et al. define them."""
    differences = scores[positive][:, None] - scores[~positive][None]
    wins = (differences > 0) + 0.5 * (differences == 0)
    by_positive, by_negative = wins.mean(axis=1), wins.mean(axis=0)
    return wins.mean(), by_positive.var(ddof=1) / len(by_positive) + by_negative.var(ddof=1) / len(
        by_negative
    )


def logit(share):
    return np.log(share / (1 - share))


@pytest.mark.parametrize(
    ("sizes", "distance", "decimals"), [((30, 70), 1.0, 3), ((2, 3), 0.2, 1), ((40, 9), 1, 0)]
)
def test_the_area_and_its_variance_are_those_of_all_pairs_and_of_scikit_learn(sizes, distance, decimals):
    scores, positive = two_normals(*sizes, distance, decimals=decimals)
    auc = estimate_auc(scores[:, None], positive[:, None])
    area, variance = pairwise_delong(scores, positive)
    assert auc.value == pytest.approx(area) == pytest.approx(metrics.roc_auc_score(positive, scores))
    half = 1.959964 * np.sqrt(variance) / (area * (1 - area))
    assert (logit(auc.low), logit(auc.high)) == pytest.approx(
        (logit(area) - half, logit(area) + half), rel=1e-5
    )


def resampled(statistic, positive, num=150):
    """Quantiles of a statistic over resamples within each side, a method of its own."""
    rng = np.random.default_rng(1)
    sides = [np.flatnonzero(side) for side in (positive, ~positive)]
    draws = [statistic(np.concatenate([rng.choice(s, len(s)) for s in sides])) for _ in range(num)]
    return np.quantile(draws, (0.025, 0.975))


def test_the_interval_of_an_area_agrees_with_a_bootstrap():
    scores, positive = two_normals(80, 150, 1.2)
    auc = estimate_auc(scores[:, None], positive[:, None])
    low, high = resampled(lambda i: metrics.roc_auc_score(positive[i], scores[i]), positive)
    assert (auc.low, auc.high) == pytest.approx((low, high), abs=0.02)


def test_the_interval_of_a_mean_area_agrees_with_a_bootstrap():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, 300)
    scores = rng.normal(size=(300, 4)) + 1.2 * np.eye(4)[targets]
    auc = estimate_auc(scores, truth_table(targets, 4, multi_label=False))
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)

    def macro(cases):
        each = [metrics.roc_auc_score(targets[cases] == k, scores[cases, k]) for k in range(4)]
        return np.mean(each)

    assert auc.value == pytest.approx(macro(np.arange(300)))
    assert (auc.low, auc.high) == pytest.approx(tuple(resampled(macro, targets == 0, 100)), abs=0.02)
    figures = judge_classes(probabilities, probabilities.argmax(1), targets, "abcd", False)
    assert figures["auc"].value == pytest.approx(
        metrics.roc_auc_score(targets, probabilities, multi_class="ovr"), abs=1e-12
    )


def test_the_interval_of_an_area_covers_the_true_one_as_often_as_promised():
    true, num_covered = 0.9615, 0  # of normals 2.5 apart, 2.5 / √2 into the normal distribution
    for seed in range(200):
        scores, positive = two_normals(22, 76, 2.5, seed)
        auc = estimate_auc(scores[:, None], positive[:, None])
        num_covered += auc.low <= true <= auc.high
    assert 0.89 <= num_covered / 200 <= 0.98


@pytest.mark.parametrize(("num_positive", "num_negative"), [(5, 20), (1, 1), (30, 1)])
def test_a_perfect_area_keeps_the_doubt_of_the_smaller_side(num_positive, num_negative):
    scores, positive = two_normals(num_positive, num_negative, 100)
    auc = estimate_auc(scores[:, None], positive[:, None])
    assert (auc.value, auc.high) == (1, 1)
    wilson = 1 / (1 + 1.959964**2 / min(num_positive, num_negative))
    assert auc.low == pytest.approx(wilson)


def test_two_classes_are_judged_by_the_second_as_scikit_learn_does():
    scores, positive = two_normals(60, 90, 1.5)
    stated = 1 / (1 + np.exp(1.0 - scores))
    probabilities, targets = np.stack((1 - stated, stated), axis=1), positive.astype(int)
    predictions = (stated > 0.4).astype(int)
    figures = judge_classes(probabilities, predictions, targets, ("normal", "ill"), multi_label=False)
    assert {name: figure.value for name, figure in figures.items() if name != "ece"} == pytest.approx(
        {
            "auc": metrics.roc_auc_score(targets, stated),
            "accuracy": metrics.accuracy_score(targets, predictions),
            "balanced_accuracy": metrics.balanced_accuracy_score(targets, predictions),
            "brier": metrics.brier_score_loss(targets, stated),
            "sensitivity/ill": metrics.recall_score(targets, predictions),
            "specificity/ill": metrics.recall_score(targets, predictions, pos_label=0),
            "average_precision/ill": metrics.average_precision_score(targets, stated),
        }
    )
    low, high = resampled(lambda i: (predictions[i] == targets[i])[positive[i]].mean(), positive)
    assert (figures["sensitivity/ill"].low, figures["sensitivity/ill"].high) == pytest.approx(
        (low, high), abs=0.03
    )
    low, high = resampled(lambda i: metrics.balanced_accuracy_score(targets[i], predictions[i]), positive)
    balanced = figures["balanced_accuracy"]
    assert (balanced.low, balanced.high) == pytest.approx((low, high), abs=0.02)
    low, high = resampled(lambda i: metrics.average_precision_score(targets[i], stated[i]), positive)
    precision = figures["average_precision/ill"]
    assert precision.low <= low < high <= precision.high + 0.02


def test_more_classes_and_labels_have_a_figure_each():
    rng = np.random.default_rng(0)
    targets = np.arange(90) % 3
    probabilities = rng.dirichlet((1, 1, 1), 90) * 0.5 + 0.5 * np.eye(3)[targets]
    figures = judge_classes(probabilities, probabilities.argmax(1), targets, "abc", multi_label=False)
    each = {f"{n}/{k}" for n in ("auc", "sensitivity", "specificity", "average_precision") for k in "abc"}
    assert set(figures) == {"auc", "accuracy", "balanced_accuracy", "brier", "ece"} | each
    assert figures["brier"].value == pytest.approx(((probabilities - np.eye(3)[targets]) ** 2).sum(1).mean())
    truth = rng.random((90, 3)) < 0.3
    answers = rng.random((90, 3)) < 0.3
    figures = judge_classes(probabilities, answers, truth, "abc", multi_label=True)
    assert set(figures) == {"auc", "accuracy", "brier", "ece"} | each
    assert figures["accuracy"].value == pytest.approx((answers == truth).mean())
    assert figures["auc"].value == pytest.approx(metrics.roc_auc_score(truth, probabilities))


@settings(max_examples=30)
@given(
    arrays.arrays(
        np.float64,
        st.tuples(st.integers(1, 25), st.integers(2, 3)),
        elements=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    ),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_whatever_is_judged_every_figure_is_a_number_within_its_interval(probabilities, multi_label, random):
    num, num_classes = probabilities.shape
    targets, predictions = (np.array([random.randrange(num_classes) for _ in range(num)]) for _ in range(2))
    if multi_label:
        targets, predictions = (t[:, None] == np.arange(num_classes) for t in (targets, predictions))
    figures = judge_classes(probabilities, predictions, targets, "abc"[:num_classes], multi_label)
    assert {"accuracy", "brier", "ece"} <= set(figures)
    for name, figure in figures.items():
        if np.isinf(figure.low):
            assert len(probabilities) == 1, name  # one case says nothing of others
            continue
        assert -1e-9 <= figure.low <= figure.value + 1e-9, name
        assert figure.value - 1e-9 <= figure.high < 4, name


@pytest.mark.parametrize("multi_label", [False, True])
def test_one_case_bounds_neither_the_calibration_error_nor_the_brier_score(multi_label):
    target = np.array([[False, True]]) if multi_label else np.array([1])
    figures = judge_classes(np.array([[0.3, 0.7]]), target, target, ("normal", "ill"), multi_label)
    for name in "ece", "brier":
        assert (figures[name].low, figures[name].high) == (-np.inf, np.inf), name


def test_what_the_cases_do_not_define_is_absent():
    probabilities, ill = np.array([[0.3, 0.7], [0.6, 0.4]]), np.array([1, 1])
    figures = judge_classes(probabilities, np.array([1, 0]), ill, ("normal", "ill"), multi_label=False)
    assert set(figures) == {"accuracy", "brier", "ece", "sensitivity/ill"}
    targets = np.array([0, 1, 0, 1])
    probabilities = np.full((4, 3), 1 / 3)
    figures = judge_classes(probabilities, targets, targets, "abc", multi_label=False)
    assert {"auc", "balanced_accuracy", "sensitivity/c", "auc/c", "average_precision/c"}.isdisjoint(figures)
    assert {"auc/a", "sensitivity/a", "specificity/c"} <= set(figures)


@pytest.mark.parametrize(
    ("probabilities", "predictions", "targets"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), np.zeros(0, int)),
        (np.array([[0.5, np.nan]]), np.array([0]), np.array([0])),
        (np.array([[0.5, 0.5]]), np.array([0, 1]), np.array([0, 1])),
        (np.array([[0.5, 0.5]]), np.array([0, 1]), np.array([0])),
    ],
)
def test_nothing_or_nonsense_is_refused(probabilities, predictions, targets):
    with pytest.raises(ValueError, match="at least one"):
        judge_classes(probabilities, predictions, targets, ("a", "b"), multi_label=False)


def test_the_interval_of_an_ece_begins_at_zero_where_noise_explains_it_and_holds_the_true_one():
    rng = np.random.default_rng(0)
    for bend, is_calibrated in ((1, True), (3, False)):
        stated = rng.random(400)
        targets = (rng.random(400) < stated**bend).astype(int)
        probabilities = np.stack((1 - stated, stated), axis=1)
        ece = judge_classes(probabilities, targets, targets, ("a", "b"), multi_label=False)["ece"]
        assert (ece.low == 0) == is_calibrated
        assert ece.value > 0.02
        assert ece.low <= (0 if is_calibrated else 0.25) <= ece.high


def test_risk_and_coverage_by_hand():
    curve = risk_coverage(np.array([0.6, 0.9, 0.8, 0.7]), np.array([1.0, 0.0, 1.0, 0.0]))
    assert curve.coverage == pytest.approx([0.25, 0.5, 0.75, 1])
    assert curve.risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert curve.area == pytest.approx(1 / 3)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from([0.5, 0.7, 1.0]), st.booleans()), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
)
def test_a_risk_knows_no_order_of_equally_sure_cases_and_ends_at_the_mean(cases, random):
    def curve_of(pairs):
        confidence, errors = np.array(pairs, dtype=float).T
        return risk_coverage(confidence, errors)

    curve = curve_of(cases)
    shuffled = curve_of(random.sample(cases, len(cases)))
    assert curve.risk == pytest.approx(shuffled.risk)
    assert curve.risk[-1] == pytest.approx(np.mean([wrong for _, wrong in cases]))


def test_the_errors_of_a_case_are_shares_of_its_answers():
    assert case_errors(np.array([0, 1]), np.array([1, 1])).tolist() == [1, 0]
    assert case_errors(np.eye(2, dtype=bool), np.ones((2, 2), bool)).tolist() == [0.5, 0.5]


def columns(scores):
    """`(S, N, 1)` of one training."""
    return np.asarray(scores)[None, :, None]


def test_the_difference_of_areas_is_delongs_of_all_pairs():
    first, positive = two_normals(30, 50, 1.0)
    second = np.round(first + np.random.default_rng(7).normal(0, 0.8, 80), 2)
    found = compare_auc(columns(first), columns(second), positive[:, None])

    def placements(scores):
        differences = scores[positive][:, None] - scores[~positive][None]
        wins = (differences > 0) + 0.5 * (differences == 0)
        return wins.mean(), wins.mean(axis=1), wins.mean(axis=0)

    (area, *sides), (other, *others) = placements(first), placements(second)
    covariances = (np.cov(one, two) / len(one) for one, two in zip(sides, others, strict=True))
    error = np.sqrt(sum(c[0, 0] + c[1, 1] - 2 * c[0, 1] for c in covariances))
    assert found.value == pytest.approx(other - area)
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * error, rel=1e-6)
    assert found.p == pytest.approx(2 * norm.sf(abs(other - area) / error))


def test_a_true_zero_between_areas_is_called_a_difference_as_often_as_promised():
    rng = np.random.default_rng(8)
    positive, ps = np.arange(90) < 40, []
    for _ in range(200):
        common = positive + rng.normal(0, 0.7, 90)
        first, second = (columns(common + rng.normal(0, 0.7, 90)) for _ in range(2))
        ps.append(compare_auc(first, second, positive[:, None]).p)
    assert 0.02 <= np.mean(np.array(ps) <= 0.05) <= 0.09


def test_several_trainings_and_columns_count_with_their_mean_area():
    rng = np.random.default_rng(9)
    truth = rng.random((60, 3)) < 0.4
    first, second = truth + rng.normal(0, 1, (2, 60, 3)), truth + rng.normal(0, 0.8, (3, 60, 3))
    areas = [
        np.mean([metrics.roc_auc_score(truth, scores, average="macro") for scores in side])
        for side in (first, second)
    ]
    found = compare_auc(first, second, truth)
    assert found.value == pytest.approx(areas[1] - areas[0])
    assert compare_auc(first, first, truth).p == 1 and compare_auc(first, first, truth).num_changed == 0


def test_areas_of_too_few_cases_are_not_compared_and_perfect_ones_are_never_certain():
    positive = np.array([[True], [False], [False], [True]])
    scores = columns([0.9, 0.1, 0.2, 0.8])
    assert compare_auc(scores[:, :3], scores[:, :3], positive[:3]) is None
    assert compare_auc(scores, scores, positive).p == 1
    turned = compare_auc(scores, -scores, positive)
    assert turned.value == -1 and turned.p == 0.5
