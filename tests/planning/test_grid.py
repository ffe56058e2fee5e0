"""The grid that the network sees."""

import pytest

from pipeline.planning.grid import choose_spacing

PLENTY = 128**3


def test_an_isotropic_study_keeps_its_median(study):
    spacings = [(0.9, 0.9, 0.9)] * 2 + [(1.0, 1.0, 1.0)] * 3 + [(1.3, 1.3, 1.3)] * 2
    assert choose_spacing(study(spacings=spacings), PLENTY).value == [1.0, 1.0, 1.0]


def test_thick_slices_take_their_tenth_percentile(study):
    spacings = [(1.0, 1.0, float(mm)) for mm in range(4, 14)]
    chosen = choose_spacing(study(spacings=spacings, shape=(200, 200, 20)), PLENTY)
    assert chosen.value == [1.0, 1.0, pytest.approx(4.9)]
    assert "10th percentile" in chosen.reason


def test_thick_slices_are_never_made_finer_than_the_others(study):
    spacings = [(1.5, 1.5, 0.5)] * 3 + [(1.5, 1.5, 6.0)] * 7
    assert choose_spacing(study(spacings=spacings, shape=(200, 200, 20)), PLENTY).value == [1.5, 1.5, 1.5]


def test_a_moderately_coarse_axis_keeps_its_median(study):
    spacings = [(1.0, 1.0, float(mm)) for mm in (1, 2, 2.5, 3, 3)]
    assert choose_spacing(study(spacings=spacings, shape=(200, 200, 20)), PLENTY).value == [1.0, 1.0, 2.5]


def test_a_coarse_axis_may_be_any(study):
    spacings = [(float(mm), 1.0, 1.0) for mm in range(4, 14)]
    assert choose_spacing(study(spacings=spacings, shape=(20, 200, 200)), PLENTY).value[0] == pytest.approx(
        4.9
    )


def test_a_small_patch_makes_the_grid_coarser_until_it_sees_a_quarter(study):
    chosen = choose_spacing(study(shape=(256, 256, 256), thickness=(90.0,) * 3), 48**3)
    voxels = 1
    for length, mm in zip((256,) * 3, chosen.value, strict=True):
        voxels *= length / mm
    assert 48**3 / voxels == pytest.approx(0.25, rel=0.16)  # a step of 5 % per axis
    assert "not the cases' 1 x 1 x 1: coarser" in chosen.reason


def test_it_stays_fine_enough_for_the_thinnest_structure(study):
    chosen = choose_spacing(study(shape=(256, 256, 256), thickness=(6.0, 8.0, 2.0)), 16**3)
    assert chosen.value <= [6 / 4, 8 / 4, 1.0]
    assert chosen.value == pytest.approx([1.5, 2.0, 1.0], rel=0.05)


def test_an_axis_across_which_a_structure_is_thin_is_made_finer(study):
    spacings = [(4.5, 4.5, 2.5)] * 5
    chosen = choose_spacing(study(spacings=spacings, thickness=(12.0, 9.0, 30.0)), PLENTY)
    assert chosen.value == [4.0, 3.0, 2.5]
    assert "finer where" in chosen.reason
    assert "coarser" not in chosen.reason


def test_no_axis_is_made_finer_than_the_finest_or_by_more_than_a_half(study):
    chosen = choose_spacing(study(spacings=[(1.0, 1.2, 2.4)] * 5, thickness=(2.0, 2.0, 2.4)), PLENTY)
    assert chosen.value == [1.0, 1.0, pytest.approx(1.6)]


def test_thick_slices_are_not_made_thinner_for_what_is_thin(study):
    spacings = [(1.0, 1.0, 5.0)] * 5
    chosen = choose_spacing(study(spacings=spacings, shape=(200, 200, 20), thickness=(9.0, 9.0, 5.0)), PLENTY)
    assert chosen.value == [1.0, 1.0, 5.0]


def test_what_was_made_finer_may_be_made_coarser_elsewhere(study):
    spacings = [(4.5, 4.5, 2.5)] * 5
    chosen = choose_spacing(
        study(spacings=spacings, shape=(100, 60, 130), thickness=(12.0, 9.0, 16.0)), 16**3
    )
    assert chosen.value[:2] == [4.0, 3.0]
    assert chosen.value[2] == pytest.approx(4.0, rel=0.05)
    assert chosen.reason.index("finer") < chosen.reason.index("coarser")


def test_without_structures_nothing_is_made_coarser(study):
    chosen = choose_spacing(study(shape=(256, 256, 256), labels={"background": 0}), 16**3)
    assert chosen.value == [1.0, 1.0, 1.0]
