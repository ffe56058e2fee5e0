"""A plan cuts no more than it must, keeps within the memory it is given, and says the least that would do."""

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ResourceError
from pipeline.inference.budget import DECIDING_BYTES, Memory, Work, make_plan
from pipeline.inference.windows import lay_windows

MIB = 2**20


def work(shape=(60, 80, 200), window=(32, 32, 32), scores=10, overlap=(1, 1, 1)):
    return Work(lay_windows(shape, window, 0.5), scores, overlap, normalises=True)


def test_without_a_budget_the_volume_stays_whole_and_windows_follow_its_longest_axis():
    plan = make_plan(work(), batch_size=4, num_lanes=3)
    assert (plan.axis, len(plan.boxes), plan.batch_size, plan.num_lanes) == (2, 1, 4, 3)
    assert plan.num_windows == work().windows.num
    assert plan.buffer_bytes == 4 * 11 * 60 * 80 * 33


def test_the_buffer_does_not_grow_with_depth():
    shallow, deep = (make_plan(work(shape=(60, 80, n)), 1, 1).buffer_bytes for n in (200, 2000))
    assert shallow == deep


@given(
    limit=st.integers(60 * MIB, 200 * MIB), per_window=st.integers(0, 20 * MIB), num_lanes=st.integers(1, 4)
)
def test_a_plan_keeps_within_its_limit_and_cuts_no_more_than_it_must(limit, per_window, num_lanes):
    memory = Memory(limit, used=5 * MIB, per_window=per_window)
    try:
        plan = make_plan(work(), 8, num_lanes, memory)
    except ResourceError as error:
        least = float(re.search(r"the least that would do is ([\d.]+) MiB", str(error))[1])
        assert least * MIB > limit - MIB
        make_plan(work(), 8, num_lanes, Memory(int(least * MIB), 5 * MIB, per_window))
        return
    assert plan.expected_bytes <= limit
    beside = (plan.num_lanes > 1) * plan.batch_size * work().window_bytes
    in_flight = plan.num_lanes * plan.batch_size * per_window
    assert plan.expected_bytes == plan.buffer_bytes + 5 * MIB + DECIDING_BYTES + in_flight + beside
    assert plan.num_lanes <= num_lanes
    if len(plan.boxes) > 1:
        fewer = work().boxes(len(plan.boxes) - 1)
        needed = max(work().buffer_bytes(box) for box in fewer) + per_window
        assert needed + 5 * MIB + DECIDING_BYTES > limit


@given(num_parts=st.integers(1, 80))
def test_parts_cover_the_volume_and_share_what_resampling_needs(num_parts):
    boxes = work().boxes(num_parts)
    ranges = [box[1] for box in boxes]  # the sweep goes along the third axis, the second is cut
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 80
    for (_, stop), (first, _) in pairwise(ranges):
        assert stop == first + 1
    assert all(box[0] == (0, 60) and box[2] == (0, 200) for box in boxes)
