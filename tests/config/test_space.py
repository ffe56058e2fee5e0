"""What a sweep tries is parsed with all its faults told, and nothing outside it is ever drawn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Range, parse_space
from pipeline.errors import ConfigError


def test_commas_within_brackets_part_no_values():
    space = parse_space(["network.features=[8,16],[16, 32]", "training.optimizer=adamw,muon"], [])
    assert space.choices["network.features"] == ("[8,16]", "[16, 32]")
    assert [*space.combinations()] == [
        {"network.features": features, "training.optimizer": optimizer}
        for features in ("[8,16]", "[16, 32]")
        for optimizer in ("adamw", "muon")
    ]


def test_ranges_say_how_they_are_drawn():
    space = parse_space([], ["training.learning_rate=1e-4..1e-2:log", "training.batch_size=1..4"])
    assert space.ranges["training.learning_rate"] == Range(1e-4, 1e-2, is_log=True, is_whole=False)
    assert space.ranges["training.batch_size"] == Range(1, 4, is_log=False, is_whole=True)


@given(st.floats(1e-6, 1e6), st.floats(0, 1), st.floats(1.001, 1e3))
def test_rounding_leaves_no_range(low, share, ratio):
    span = Range(low, low * ratio, is_log=True, is_whole=False)
    assert span.low <= span.within(float(span.text(low * ratio**share))) <= span.high


def test_all_that_is_wrong_is_told_together():
    with pytest.raises(ConfigError) as error:
        parse_space(
            ["training.optimizer=", "data.fold=0,1", "tracking.uri=a,b", "training.momentum=1,1"],
            ["training.learning_rate=3", "training.momentum=2..1", "training.weight_decay=0..1:log"],
        )
    told = str(error.value)
    for part in (
        "optimizer",
        "judged by different cases",
        "tracking.uri",
        "stands in it twice",
        "=3",
        "2..1",
    ):
        assert part in told
    assert "begins above 0" in told and "stands twice" in told


def test_nothing_to_try_is_refused():
    with pytest.raises(ConfigError, match="nothing is to be tried"):
        parse_space([], [])
