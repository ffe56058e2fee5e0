"""What was taken for what is counted exactly, and sides are always told of."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.inference.confusion import (
    Confusion,
    find_confusions,
    read_confusions,
    summarise_confusions,
    write_confusions,
)
from pipeline.volume import Grid, Volume

PAROTIDS = {"LeftParotid": (1,), "RightParotid": (2,), "Mandible": (5,)}


def volume(*values: int) -> Volume:
    """A row of voxels of 10 mm³ each."""
    return Volume(
        np.array(values, np.uint8).reshape(-1, 1, 1), Grid((len(values), 1, 1), np.diag([1, 2, 5, 1.0]))
    )


def test_every_pair_is_counted_in_the_patients_millilitres():
    truth, found = volume(1, 1, 1, 1, 2, 2, 5, 0), volume(1, 2, 2, 5, 2, 1, 0, 5)
    assert find_confusions("a", found, truth, PAROTIDS) == [
        Confusion("a", "LeftParotid", "RightParotid", pytest.approx(0.02), 0.5),
        Confusion("a", "LeftParotid", "Mandible", pytest.approx(0.01), 0.25),
        Confusion("a", "RightParotid", "LeftParotid", pytest.approx(0.01), 0.5),
    ]


def test_background_ignored_voxels_and_what_nobody_drew_confuse_nothing():
    truth, found = volume(255, 0, 1, 2), volume(1, 2, 0, 5)
    drawn = {name: PAROTIDS[name] for name in ("LeftParotid", "RightParotid")}
    assert find_confusions("a", found, truth, drawn, ignore_value=255) == []


def test_nested_regions_are_not_taken_for_one_another_but_disjoint_ones_are():
    regions = {"whole": (1, 2), "core": (2,), "other": (3,)}
    truth, found = volume(1, 2, 2, 3), volume(2, 1, 3, 1)
    pairs = {(one.reference, one.prediction) for one in find_confusions("a", found, truth, regions)}
    assert pairs == {("whole", "other"), ("core", "other"), ("other", "whole")}


def test_sides_are_told_first_even_if_they_were_never_confused():
    found = [
        Confusion("a", "Mandible", "LeftParotid", 3.0, 0.1),
        Confusion("b", "Mandible", "LeftParotid", 1.0, 0.4),
    ]
    first, second, third = summarise_confusions(found, PAROTIDS)
    assert {(one.reference, one.prediction) for one in (first, second)} == {
        ("LeftParotid", "RightParotid"),
        ("RightParotid", "LeftParotid"),
    }
    assert first.is_other_side and first.num_cases == second.num_cases == 0
    assert (third.num_cases, third.volume_ml, third.largest_share) == (2, 4.0, 0.4)


def test_the_table_is_read_as_it_was_written(tmp_path):
    found = [Confusion("a, b", "LeftParotid", "RightParotid", 0.25, 0.5)]
    write_confusions(tmp_path / "confusion.csv", found)
    assert read_confusions(tmp_path / "confusion.csv") == found
    (tmp_path / "other.csv").write_text("case,label\na,b\n")
    with pytest.raises(InputError, match="table of confusions"):
        read_confusions(tmp_path / "other.csv")
