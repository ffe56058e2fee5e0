"""What tables of cases call them."""

import pytest

from pipeline.report.case_tables import name_rank


@pytest.mark.parametrize(
    ("num", "expected"),
    [
        (1, ["number 1"]),
        (2, ["worst", "best"]),
        (3, ["worst", "median", "best"]),
        (5, ["worst", "number 2", "median", "number 4", "best"]),
    ],
)
def test_a_rank_is_named_for_what_it_is(num, expected):
    assert [name_rank(place, num) for place in range(num)] == expected
