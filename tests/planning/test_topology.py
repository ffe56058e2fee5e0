"""Patch and levels fit each other and what is allowed."""

import math

from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import NetworkSection
from pipeline.planning.topology import SHORTEST_EDGE, choose_topology

contents = st.lists(st.floats(1, 600), min_size=2, max_size=3)
spacings = st.lists(st.floats(0.2, 12), min_size=3, max_size=3)


@given(contents, spacings, st.integers(2 * 16**3, 128**3), st.integers(2, 6))
def test_what_holds_for_every_study(content, spacing, max_voxels, max_levels):
    spacing = spacing[: len(content)]
    topology = choose_topology(content, spacing, max_voxels, max_levels)
    patch, total = topology.patch_size, topology.total_stride
    assert 2 <= len(topology.strides) == len(topology.kernels) <= max_levels
    assert all(n % stride == 0 for n, stride in zip(patch, total, strict=True))
    assert all(n >= SHORTEST_EDGE * stride for n, stride in zip(patch, total, strict=True) if stride > 1)
    finest = min(range(len(spacing)), key=spacing.__getitem__)
    assert patch[finest] >= 2 * SHORTEST_EDGE
    smallest = math.prod(1 if mm >= 2 * min(spacing) else 2 * SHORTEST_EDGE for mm in spacing)
    shortest = math.prod(SHORTEST_EDGE * stride if stride > 1 else 1 for stride in total)
    assert topology.num_voxels <= max(max_voxels, smallest, shortest)
    for n, length, stride in zip(patch, content, total, strict=True):
        assert n <= max(length + stride / 2 + 0.5, 2 * SHORTEST_EDGE)
    # The schema takes it as it is.
    NetworkSection(
        dimensions=len(content),
        features=(8,) * len(topology.strides),
        strides=topology.strides,
        kernels=topology.kernels,
    )


def test_equal_voxels_are_halved_together():
    topology = choose_topology([200, 200, 200], [1, 1, 1], 64**3, 4)
    assert topology.patch_size == (64, 64, 64)
    assert topology.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert set(topology.kernels) == {(3, 3, 3)}


def test_a_coarse_axis_waits_until_the_others_have_come_near_it():
    topology = choose_topology([320, 320, 20], [0.6, 0.6, 4], 128**3, 6)
    assert topology.strides[:4] == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2))
    assert topology.kernels[:4] == ((3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3))


def test_patches_have_equal_lengths_in_the_patient():
    topology = choose_topology([400, 400, 400], [1, 1, 2], 64 * 64 * 32, 4)
    assert topology.patch_size == (64, 64, 32)


def test_a_short_axis_leaves_its_voxels_to_the_others():
    topology = choose_topology([400, 400, 16], [1, 1, 1], 64**3, 3)
    assert topology.patch_size[2] == 16
    assert 0.8 * 64**3 <= topology.num_voxels <= 64**3
