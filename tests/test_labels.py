"""Labels that have a side and their partners."""

import pytest

from pipeline.labels import LabelContract
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
