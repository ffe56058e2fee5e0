"""Sides in label names."""

import pytest

from pipeline.sides import has_side, left_right_pairs, mirrored_name


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
