"""Folds keep patients together, are balanced, and depend on nothing but patients and seed."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.segmentation import DataSection
from pipeline.data.cases import Case
from pipeline.data.folds import list_folds, split_cases
from pipeline.errors import ConfigError, InputError


def section(fold, num_folds: int = 5) -> DataSection:
    return DataSection(manifest=Path("unused"), fold=fold, num_folds=num_folds)


def make_cases(counts, folds=None) -> list[Case]:
    """Case lists by number of cases of each patient."""
    return [
        Case(f"p{patient}-{index}", f"p{patient}", (), fold=None if folds is None else folds[patient])
        for patient, count in enumerate(counts)
        for index in range(count)
    ]


@st.composite
def studies(draw):
    counts = draw(st.lists(st.integers(1, 4), min_size=5, max_size=30))
    num_folds = draw(st.integers(2, 5))
    return make_cases(counts), num_folds


@given(studies())
def test_every_case_validates_once_and_no_patient_is_on_both_sides(study):
    cases, num_folds = study
    validated = []
    for fold in range(num_folds):
        split = split_cases(cases, section(fold, num_folds))
        assert {c.patient for c in split.training}.isdisjoint(c.patient for c in split.validation)
        assert sorted(c.id for c in (*split.training, *split.validation)) == sorted(c.id for c in cases)
        validated += [c.id for c in split.validation]
    assert sorted(validated) == sorted(c.id for c in cases)


@pytest.mark.parametrize("fold", [0, "none"])
def test_a_split_knows_whether_patients_are_told_from_cases(fold):
    named = make_cases([1] * 6)
    unnamed = [replace(case, patient=case.id) for case in named]
    for cases, is_named in ((named, True), ([*unnamed[1:], named[0]], True), (unnamed, False)):
        assert split_cases(cases, section(fold)).names_patients == is_named


@given(studies())
def test_folds_are_as_balanced_as_patients_allow(study):
    cases, num_folds = study
    sizes = [len(split_cases(cases, section(f, num_folds)).validation) for f in range(num_folds)]
    largest_patient = max(sum(c.patient == p for c in cases) for p in {c.patient for c in cases})
    assert max(sizes) - min(sizes) <= largest_patient
    assert min(sizes) > 0


def test_patients_with_many_cases_are_dealt_out_first():
    split = split_cases(make_cases([1, 1, 4, 1, 1]), section(0, 2))
    assert len(split.training) == len(split.validation) == 4


@given(studies(), st.randoms())
def test_the_order_of_cases_does_not_matter(study, random):
    cases, num_folds = study
    shuffled = random.sample(cases, len(cases))
    one, other = (split_cases(c, section(0, num_folds)) for c in (cases, shuffled))
    assert set(one.validation) == set(other.validation)
    assert list(one.training) == [c for c in cases if c in set(one.training)]


@st.composite
def class_studies(draw):
    """A case per patient, of one of up to four classes."""
    own = draw(st.lists(st.sampled_from("abbbbcccd"), min_size=5, max_size=40))
    cases = [Case(f"{n}", f"{n}", (), classes=(name,)) for n, name in enumerate(own)]
    return cases, draw(st.integers(2, 5))


@given(class_studies())
def test_every_fold_has_its_share_of_each_class_and_of_all_cases(study):
    cases, num_folds = study
    folds = [split_cases(cases, section(f, num_folds)).validation for f in range(num_folds)]
    sizes = [len(fold) for fold in folds]
    assert max(sizes) - min(sizes) <= 1
    for name in "abcd":
        counts = [sum(case.classes == (name,) for case in fold) for fold in folds]
        assert max(counts) - min(counts) <= 1


@given(class_studies(), st.randoms())
def test_folds_by_class_do_not_depend_on_the_order_of_cases(study, random):
    cases, num_folds = study
    one, other = (
        split_cases(c, section(0, num_folds)).validation for c in (cases, random.sample(cases, len(cases)))
    )
    assert set(one) == set(other)


@given(class_studies(), st.data())
def test_folds_by_class_keep_patients_together(study, data):
    cases, num_folds = study
    patients = [f"p{n}" for n in range(num_folds)]
    cases = [replace(case, patient=data.draw(st.sampled_from(patients))) for case in cases]
    cases += [replace(cases[0], id=patient, patient=patient) for patient in patients]
    split = split_cases(cases, section(0, num_folds))
    assert {c.patient for c in split.training}.isdisjoint(c.patient for c in split.validation)


@pytest.mark.parametrize("rare", [("b",), ()])
def test_classes_count_for_more_than_equal_numbers_of_cases(rare):
    """By numbers alone, both rare cases would join the fold that lacks the first patient's two."""
    own = {"p": [("a",)] * 2, "q": [rare], "r": [rare], "s": [("a",)], "t": [("a",)]}
    cases = [
        Case(f"{patient}{n}", patient, (), classes=names)
        for patient, images in own.items()
        for n, names in enumerate(images)
    ]
    for fold in range(2):
        held_out = [case.classes for case in split_cases(cases, section(fold, 2)).validation]
        assert sorted(held_out) == sorted([("a",), ("a",), rare])


def test_cases_of_several_classes_or_of_none_are_shared_out_too():
    own = [("a", "b")] * 5 + [("a",)] * 10 + [()] * 5 + [("b", "c")] * 5
    cases = [Case(f"{n}", f"{n}", (), classes=names) for n, names in enumerate(own)]
    for fold in range(5):
        held_out = split_cases(cases, section(fold)).validation
        counts = [sum(name in case.classes for case in held_out) for name in "abc"]
        assert (counts, sum(not case.classes for case in held_out)) == ([3, 2, 1], 1)


def test_known_folds_stay_as_they_are():
    """A change here would change every published number: it is not a refactoring."""
    split = split_cases(make_cases([1] * 10), section(0))
    assert [case.patient for case in split.validation] == ["p0", "p1"]


def test_none_trains_on_everything():
    for cases in (make_cases([1, 2]), make_cases([1, 2], folds=[0, 1])):
        split = split_cases(cases, section("none"))
        assert (split.training, split.validation) == (tuple(cases), ())


def test_given_folds_are_used_and_cases_without_one_train():
    cases = make_cases([2, 1, 1], folds=[0, 3, None])
    assert [c.patient for c in split_cases(cases, section(0)).validation] == ["p0", "p0"]
    assert [c.patient for c in split_cases(cases, section(3)).validation] == ["p1"]
    assert [c.patient for c in split_cases(cases, section(3)).training] == ["p0", "p0", "p2"]


def test_a_fold_that_does_not_exist_names_those_that_do():
    with pytest.raises(ConfigError, match=r"no fold 1.* 0, 3 .*unknown-fold"):
        split_cases(make_cases([1, 1], folds=[0, 3]), section(1))
    with pytest.raises(ConfigError, match=r"no fold 5.*0, 1, 2, 3, 4.*unknown-fold"):
        split_cases(make_cases([1] * 9), section(5))


def test_a_fold_that_holds_every_case_leaves_none_to_train_on():
    with pytest.raises(ConfigError, match=r"every case is in fold 0.*nothing-to-train"):
        split_cases(make_cases([1, 1], folds=[0, 0]), section(0))


def test_a_cross_validation_has_every_fold_that_can_be_held_out():
    assert list_folds(make_cases([1] * 9), section("all", 4)) == (0, 1, 2, 3)
    assert list_folds(make_cases([2, 1, 1], folds=[3, 0, None]), section("all")) == (0, 3)
    with pytest.raises(ConfigError, match=r"gives 3 alone.*too-few-folds"):
        list_folds(make_cases([1, 1], folds=[3, None]), section("all"))


@pytest.mark.parametrize("folds", [(0, 1), (0, None)])
def test_a_patient_in_two_given_folds_is_refused_without_a_name(folds):
    cases = [
        Case("a", "Jane", (), fold=folds[0]),
        Case("b", "Jane", (), fold=folds[1]),
        Case("c", "Joe", (), fold=0),
    ]
    with pytest.raises(InputError, match=r"a, b: .*patient-in-several-folds") as caught:
        split_cases(cases, section(0))
    assert "Jane" not in str(caught.value)


def test_fewer_patients_than_folds_are_refused():
    with pytest.raises(ConfigError, match=r"2 patients.*5 folds.*too-few-patients"):
        split_cases(make_cases([4, 4]), section(0))
