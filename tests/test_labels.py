"""Labels that have a side and their partners, and what structures are in the world's terms."""

import pytest
from pydantic import ValidationError

from pipeline import terminology
from pipeline.config.segmentation import DataSection
from pipeline.labels import LabelContract
from pipeline.terminology import Code, Term
from transforms.laterality import Laterality

LABELS = {"background": 0, "heart": 7, "right_lung": 2, "left_lung": 4}
PAIRS = (("left_lung", "right_lung"),)


def test_indices_change_places_with_their_partners():
    contract = LabelContract(LABELS)
    assert contract.values == (0, 2, 4, 7)
    assert contract.label_laterality(1, PAIRS) == Laterality(1, (0, 2, 1, 3))
    assert contract.channel_laterality(1, PAIRS) == Laterality(1, (0, 2, 1, 3))
    assert contract.label_laterality(1, ()) is None


def test_regions_change_places_as_wholes():
    regions = {"chest": (7, 2, 4), "left": (4,), "lungs": (4, 2), "right": (2,)}
    contract = LabelContract(LABELS, regions)
    assert contract.channel_laterality(0, PAIRS) == Laterality(0, (0, 3, 2, 1))
    assert contract.label_laterality(0, PAIRS) == Laterality(0, (0, 2, 1, 3))


def test_a_region_without_its_counterpart_is_named():
    contract = LabelContract(LABELS, {"chest": (7, 2, 4), "left": (4, 7)})
    with pytest.raises(ValueError, match=r"left$"):
        contract.channel_laterality(0, PAIRS)


def test_every_built_in_code_is_one_of_dicoms_with_that_very_meaning():
    from pydicom.sr.codedict import codes

    meanings = {}
    for keyword in codes.SCT.dir():
        code = getattr(codes.SCT, keyword)
        meanings.setdefault(code.value, set()).add(code.meaning)
    told = [term.code for term in terminology.KNOWN.values()]
    told += [*terminology.CATEGORIES.values(), *terminology.SIDES.values(), terminology.UNKNOWN.code]
    wrong = [code for code in told if code.meaning not in meanings.get(code.value, ())]
    assert not wrong
    assert {code.scheme for code in told} == {"SCT"}


@pytest.mark.parametrize(
    ("name", "meaning", "side"),
    [
        ("liver", "Liver", None),
        ("Left_Kidney", "Kidney", "left"),
        ("kidney (R)", "Kidney", "right"),
        ("LeftParotid", "Parotid gland", "left"),
        ("lungs", "Lung", None),
        ("left and right lung", "Anatomical Structure", None),
        ("Anterior", "Anatomical Structure", None),
        ("ліва нирка", "Anatomical Structure", None),
        ("", "Anatomical Structure", None),
    ],
)
def test_a_name_tells_code_and_side_or_gets_the_general_code(name, meaning, side):
    term = terminology.term_of(name)
    assert (term.code.meaning, term.side) == (meaning, side)


def test_what_the_config_says_of_a_structure_counts_and_its_name_says_the_rest():
    section = DataSection(
        manifest="x",
        terminology={
            "left_lung": {"colour": "#00ff00"},
            "heart": {"code": "1", "meaning": "One", "scheme": "99X", "category": "abnormality"},
        },
    )
    terms = LabelContract(LABELS, terminology=section.terms).terms
    assert list(terms) == ["right_lung", "left_lung", "heart"]
    assert terms["left_lung"] == Term(Code("39607008", "Lung"), "anatomy", "left", "#00ff00")
    assert terms["heart"] == Term(Code("1", "One", "99X"), "abnormality", None, terminology.PALETTE[2])


def test_each_of_21_structures_has_a_colour_of_its_own_and_regions_that_of_their_first_value():
    many = LabelContract({"background": 0} | {f"organ{n}": 2 * n for n in range(1, 22)})
    assert len(set(many.colours.values())) == 21
    assert list(many.colours) == list(range(2, 44, 2))
    regions = LabelContract(LABELS, {"chest": (7, 2, 4), "lungs": (4, 2)})
    assert regions.colours == {7: terminology.PALETTE[0], 4: terminology.PALETTE[1]}


@pytest.mark.parametrize(
    "said",
    [
        {"code": "1"},
        {"meaning": "One"},
        {"colour": "red"},
        {"category": "organ"},
        {"code": "1" * 17, "meaning": "x"},
    ],
)
def test_a_term_that_dicom_could_not_hold_is_refused(said):
    with pytest.raises(ValidationError):
        DataSection(manifest="x", terminology={"heart": said})


def test_regions_are_at_least_one():
    with pytest.raises(ValidationError, match="regions: name at least one"):
        DataSection(manifest="x", regions={})
