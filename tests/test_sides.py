"""Sides in label names."""

import pytest

from pipeline.sides import has_side, left_right_pairs, mirrored_name, without_exchange


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("LeftParotid", "RightParotid"),
        ("ParotidLeft", "ParotidRight"),
        ("kidney_left", "kidney_right"),
        ("left atrium", "right atrium"),
        ("LEFT_LUNG", "RIGHT_LUNG"),
        ("Parotid_L", "Parotid_R"),
        ("l-hippocampus", "r-hippocampus"),
        ("Eye (L)", "Eye (R)"),
    ],
)
def test_sides_are_found_and_exchanged(one, two):
    assert mirrored_name(one) == two and mirrored_name(two) == one
    assert has_side(one) and has_side(two)


@pytest.mark.parametrize("name", ["bright", "vertebra L1", "liver", "Larynx", "T1R2", "Cleft", "upright"])
def test_other_names_have_none(name):
    assert not has_side(name)


def test_pairs_are_found_among_labels():
    names = ["background", "RightParotid", "cord", "LeftParotid", "left atrium"]
    assert left_right_pairs(names) == [("RightParotid", "LeftParotid")]


@pytest.mark.parametrize(
    ("regions", "alone"),
    [
        ({"left": (1,), "right": (2,)}, []),
        ({"right": (1,), "left": (2,)}, []),
        ({"left": (1,), "right": (3,)}, ["left", "right"]),
        ({"left": (3,), "right": (3,)}, []),
        ({"left": (1, 3)}, ["left"]),
        ({"both": (1, 2), "rest": (3,)}, []),
        ({"one": (1,), "other": (2,)}, []),
        ({"one": (1, 3)}, ["one"]),
    ],
)
def test_a_region_of_a_side_becomes_that_of_the_other(regions, alone):
    labels = {"background": 0, "lung L": 1, "lung R": 2, "heart": 3}
    assert without_exchange(labels, regions, left_right_pairs(labels)) == alone
