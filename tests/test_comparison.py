"""What is said of a difference is what the numbers say, and no more."""

import numpy as np
import pytest

from pipeline.comparison import Arm, Figure, correct, find, rank_changes, remarks, stand, tell
from pipeline.statistics import Difference, Estimate, compare_means

DICE = Figure("dice", "core")
ONE, TWO, THREE = Arm("A", ("a",)), Arm("B", ("b",)), Arm("B", ("b", "c", "d"))


def standing(arms, figure=DICE, **values):
    return stand(figure, {run: Estimate(value, value, value) for run, value in values.items()}, arms)


def told(difference, figure=DICE, num_tests=1):
    found = find(standing((ONE, TWO), figure, a=0.8, b=0.9), (ONE, TWO), difference)
    return tell(correct([found] * num_tests)[0])


def test_a_difference_is_told_with_its_side_and_size():
    better = Difference(0.031, 0.02, 0.04, 0.001, 30, 30, 1e-8)
    assert told(better) == "A difference: B is better by 0.0310."
    worse = Difference(1.5, 1.0, 2.0, 0.001, 30, 30, 1e-8)
    assert told(worse, Figure("hd95_mm", "core")) == "A difference: B is worse by 1.50."
    assert told(Difference(-0.031, -0.04, -0.02, 0.001, 30, 30, 1e-8)).startswith("A difference: B is worse")


def test_no_difference_shown_is_not_called_none():
    assert told(Difference(0.001, -0.01, 0.02, 0.4, 30, 30, 1e-8)) == (
        "No difference is shown; one of -0.0100 to +0.0200 fits these cases as well."
    )
    assert told(Difference(0, 0, 0, 1, 7, 0, 1)) == "The same in all 7 cases."


def test_more_tests_ask_for_more():
    difference = Difference(0.03, 0.01, 0.05, 0.02, 30, 30, 1e-8)
    assert told(difference).startswith("A difference")
    assert told(difference, num_tests=3).startswith("No difference is shown")
    few = Difference(0.03, 0.01, 0.05, 0.0625, 5, 5, 0.0625)
    assert told(few).startswith("Cannot be told: only 5 cases changed")


def test_ranks_and_means_may_disagree():
    skewed = Difference(-0.001, -0.02, 0.01, 0.001, 30, 30, 1e-8)
    assert "not for certain in the mean" in told(skewed)


def test_what_seeds_explain_is_not_put_down_to_a_setting():
    arms = ONE, THREE
    difference = Difference(0.02, 0.01, 0.03, 0.001, 30, 30, 1e-8)
    noisy = find(standing(arms, a=0.8, b=0.80, c=0.82, d=0.84), arms, difference)
    steady = find(standing(arms, a=0.8, b=0.819, c=0.820, d=0.821), arms, difference)
    # Student's t of two degrees of freedom times the standard error of a difference of means of 1 and 3.
    assert noisy.seed_reach == pytest.approx(4.302653 * 0.02 * np.sqrt(1 + 1 / 3))
    assert noisy.may_be_seeds and not steady.may_be_seeds
    assert "not shown to matter" in tell(correct([noisy])[0])
    assert tell(correct([steady])[0]).startswith("A difference: B is better by 0.0200, more than the spread")
    alone = find(standing((ONE, TWO), a=0.8, b=0.9), (ONE, TWO), difference)
    assert alone.seed_reach is None and not alone.may_be_seeds


def test_remarks_name_what_is_missing():
    assert any("single training each: A, B" in note for note in remarks((ONE, TWO), 50))
    notes = remarks((ONE, THREE), 8)
    assert any("B is 3 runs" in note for note in notes) and any("8 cases are few" in note for note in notes)
    assert any("So few seeds" in note for note in notes)


def test_the_cases_that_changed_most_come_first_and_unchanged_ones_not_at_all():
    values = {"A": np.array([0.5, 0.5, 0.5]), "B": np.array([0.6, 0.5, 0.1]), "C": np.array([0.8, 0.5, 0.5])}
    changes = rank_changes(["x", "y", "z"], values, 9)
    assert [(c.case, c.arm) for c in changes] == [("z", "B"), ("x", "C"), ("x", "B")]
    assert len(rank_changes(["x", "y", "z"], values, 2)) == 2


def test_correction_keeps_the_order_of_findings():
    differences = [compare_means([0.0] * 9, np.full(9, 0.01) * sign + np.arange(9) * 0.02) for sign in (0, 1)]
    found = correct([find(standing((ONE, TWO), a=0, b=1), (ONE, TWO), d) for d in differences])
    assert [f.difference for f in found] == differences
    assert all(f.num_tests == 2 and f.adjusted >= f.difference.p for f in found)
