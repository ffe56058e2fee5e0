"""The metrics agree with independent code where definitions agree, and are never NaN where that code is."""

import math

import numpy as np
import pytest
import surface_distance
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medpy.metric import binary as medpy
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from scipy.ndimage import gaussian_filter

from pipeline.metrics import STRUCTURE_METRICS, label_map_dice, structure_mask, structure_metrics

pytestmark = [  # both packages call what they themselves, or scipy, deprecated
    pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*scipy.ndimage:DeprecationWarning:surface_distance"),
]

SHARES = ("dice", "iou", "nsd", "sensitivity", "precision")
DISTANCES = ("hd95_mm", "asd_mm")
SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.9, 3.3), (5.0, 0.5, 1.25)]


def blob(seed, shape=(17, 23, 13), roughness=1.5):
    """A random mask that touches the image's edge and may fall into several pieces; never empty."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), roughness)
    return noise > np.quantile(noise, 0.7)


def blobs():
    return st.tuples(
        st.integers(0, 10_000),
        st.integers(0, 10_000),
        st.tuples(*[st.integers(2, 9)] * 3),
        st.tuples(*[st.floats(0.1, 6.0)] * 3),
    ).map(lambda drawn: (blob(drawn[0], drawn[2]), blob(drawn[1], drawn[2]), drawn[3]))


def as_batch(mask):
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_monai(seed, spacing):
    prediction, reference = blob(seed), blob(seed + 100)
    ours = structure_metrics(prediction, reference, spacing, tolerance_mm=1.1)
    pair = (as_batch(prediction), as_batch(reference))
    options = {"include_background": True, "spacing": spacing}
    hd95 = compute_hausdorff_distance(*pair, percentile=95, **options)
    asd = compute_average_surface_distance(*pair, symmetric=True, **options)
    nsd = compute_surface_dice(*pair, class_thresholds=[1.1], use_subvoxels=False, **options)
    assert ours["hd95_mm"] == pytest.approx(hd95.item(), rel=1e-5)
    assert ours["asd_mm"] == pytest.approx(asd.item(), rel=1e-5)
    assert ours["nsd"] == pytest.approx(nsd.item(), rel=1e-5)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_medpy(seed, spacing):
    prediction, reference = blob(seed), blob(seed + 100)
    ours = structure_metrics(prediction, reference, spacing)
    assert ours["dice"] == pytest.approx(medpy.dc(prediction, reference))
    assert ours["iou"] == pytest.approx(medpy.jc(prediction, reference))
    assert ours["sensitivity"] == pytest.approx(medpy.recall(prediction, reference))
    assert ours["precision"] == pytest.approx(medpy.precision(prediction, reference))
    assert ours["asd_mm"] == pytest.approx(medpy.assd(prediction, reference, spacing))


def test_agrees_with_surface_distance_where_every_border_voxel_has_the_same_distance():
    # DeepMind's code weighs by surface area and puts the surface between voxels: parallel plates are alike.
    prediction, reference = np.zeros((2, 20, 20, 20), dtype=bool)
    prediction[:, :, 4], reference[:, :, 7] = True, True
    distances = surface_distance.compute_surface_distances(reference, prediction, (1.0, 1.0, 2.0))
    ours = structure_metrics(prediction, reference, (1.0, 1.0, 2.0))
    assert ours["hd95_mm"] == pytest.approx(surface_distance.compute_robust_hausdorff(distances, 95)) == 6.0
    assert ours["dice"] == surface_distance.compute_dice_coefficient(reference, prediction) == 0.0


@settings(max_examples=60)
@given(blobs())
def test_is_finite_bounded_and_symmetric(drawn):
    prediction, reference, spacing = drawn
    forth = structure_metrics(prediction, reference, spacing)
    back = structure_metrics(reference, prediction, spacing)
    assert tuple(forth) == STRUCTURE_METRICS
    assert all(math.isfinite(value) for value in forth.values())
    assert all(0 <= forth[name] <= 1 for name in SHARES)
    assert forth["iou"] <= forth["dice"]
    for name in (*DISTANCES, "dice", "iou", "nsd"):
        assert forth[name] == pytest.approx(back[name])
    assert forth["sensitivity"] == back["precision"]
    assert forth["volume_ml"] == back["reference_volume_ml"]


@settings(max_examples=60)
@given(blobs(), st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 3))
def test_background_around_changes_nothing(drawn, padding):
    prediction, reference, spacing = drawn
    inside = structure_metrics(prediction, reference, spacing)
    padded = structure_metrics(np.pad(prediction, padding), np.pad(reference, padding), spacing)
    assert padded == pytest.approx(inside)


@settings(max_examples=30)
@given(blobs(), st.floats(0, 10), st.floats(0, 10))
def test_a_larger_tolerance_never_lowers_nsd(drawn, one, other):
    prediction, reference, spacing = drawn
    small, large = (
        structure_metrics(prediction, reference, spacing, tolerance_mm=t)["nsd"] for t in sorted((one, other))
    )
    assert small <= large


@settings(max_examples=30)
@given(blobs(), st.permutations(range(3)), st.floats(0.2, 5))
def test_axis_order_does_not_matter_and_distances_scale_with_spacing(drawn, order, factor):
    prediction, reference, spacing = drawn
    here = structure_metrics(prediction, reference, spacing)
    there = structure_metrics(
        prediction.transpose(order), reference.transpose(order), tuple(factor * spacing[a] for a in order)
    )
    for name in DISTANCES:
        assert there[name] == pytest.approx(factor * here[name], rel=1e-6, abs=1e-9)
    assert there["volume_ml"] == pytest.approx(factor**3 * here["volume_ml"])


def test_a_perfect_prediction_is_perfect():
    values = structure_metrics(blob(0), blob(0), (1.0, 2.0, 3.0), tolerance_mm=0.0)
    assert all(values[name] == 1.0 for name in SHARES)
    assert all(values[name] == 0.0 for name in DISTANCES)


def test_a_known_shift():
    prediction, reference = np.zeros((2, 10, 10, 10), dtype=bool)
    reference[2:5, 2:5, 2:5], prediction[2:5, 2:5, 3:6] = True, True
    values = structure_metrics(prediction, reference, (1.0, 1.0, 2.5))
    assert values["dice"] == values["sensitivity"] == values["precision"] == pytest.approx(2 / 3)
    assert values["iou"] == pytest.approx(1 / 2)
    assert values["hd95_mm"] == 2.5
    assert values["volume_ml"] == pytest.approx(27 * 2.5 / 1000)


def test_absent_from_both_is_perfect_agreement():
    empty = np.zeros((4, 5, 6), dtype=bool)
    values = structure_metrics(empty, empty, (1.0, 1.0, 1.0))
    assert all(values[name] == 1.0 for name in SHARES)
    assert all(values[name] == 0.0 for name in (*DISTANCES, "volume_ml", "reference_volume_ml"))


@pytest.mark.parametrize("is_missed", [True, False])
def test_missed_or_invented_is_the_worst_there_is(is_missed):
    empty, mask = np.zeros((17, 23, 13), dtype=bool), blob(0)
    spacing = (1.0, 0.5, 2.0)
    values = structure_metrics(*((empty, mask) if is_missed else (mask, empty)), spacing)
    assert all(values[name] == 0.0 for name in SHARES)
    assert all(values[name] == pytest.approx(math.hypot(17, 11.5, 26)) for name in DISTANCES)
    corners = np.zeros((2, 17, 23, 13), dtype=bool)
    corners[0, 0, 0, 0] = corners[1, -1, -1, -1] = True
    assert structure_metrics(*corners, spacing)["hd95_mm"] < values["hd95_mm"]


@pytest.mark.parametrize("axis", range(3))
def test_one_slice_is_compared_in_its_plane(axis):
    prediction, reference = blob(1, (25, 31)), blob(2, (25, 31))
    spacing = [0.8, 1.7]
    pair = (as_batch(prediction), as_batch(reference))
    hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing)
    spacing_3d = tuple(np.insert(spacing, axis, 5.0))
    values = structure_metrics(
        np.expand_dims(prediction, axis), np.expand_dims(reference, axis), spacing_3d, tolerance_mm=1.0
    )
    assert values["hd95_mm"] == pytest.approx(hd95.item(), rel=1e-5)
    assert values["asd_mm"] == pytest.approx(medpy.assd(prediction, reference, spacing))


def test_a_single_voxel_has_a_border():
    prediction, reference = np.zeros((2, 1, 1, 9), dtype=bool)
    prediction[0, 0, 2], reference[0, 0, 6] = True, True
    assert structure_metrics(prediction, reference, (1.0, 1.0, 0.5))["hd95_mm"] == 2.0
    alone = structure_metrics(*np.ones((2, 1, 1, 1), dtype=bool), (1.0, 1.0, 0.5))
    assert (alone["dice"], alone["hd95_mm"], alone["asd_mm"], alone["nsd"]) == (1, 0, 0, 1)


def test_tolerance_holds_for_spacings_that_passed_through_float32():
    prediction, reference = np.zeros((2, 20, 1, 1), dtype=bool)
    prediction[0], reference[10] = True, True
    step = float(np.float32(0.1))
    assert 10 * step > 1.0
    assert structure_metrics(prediction, reference, (step, 1.0, 1.0), tolerance_mm=1.0)["nsd"] == 1.0


def test_masks_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        structure_metrics(np.ones((2, 2, 2), bool), np.ones((2, 2, 1), bool), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("dtype", "values"),
    [(np.uint8, [0, 1, 2, 255]), (np.uint16, [0, 1, 2, 65535]), (np.int16, [-1, 1, 2, 900])],
)
def test_label_map_dice_is_the_dice_of_each_structure(dtype, values):
    prediction, reference = np.random.default_rng(0).choice(values, (2, 4, 5, 6)).astype(dtype)
    structures = {"one": (1,), "both": (1, 2), "twice": (2, 2), "high": (values[-1],), "absent": (77,)}
    expected = {
        name: structure_metrics(
            structure_mask(prediction, members), structure_mask(reference, members), (1.0, 1.0, 1.0)
        )["dice"]
        for name, members in structures.items()
    }
    assert label_map_dice(prediction, reference, structures) == pytest.approx(expected)


def test_label_map_dice_of_a_structure_in_one_map_only_is_zero():
    empty, full = np.zeros((3, 3), np.uint8), np.ones((3, 3), np.uint8)
    assert label_map_dice(empty, full, {"a": (1,), "b": (2,)}) == {"a": 0.0, "b": 1.0}
    assert label_map_dice(full, empty, {"a": (1,)}) == {"a": 0.0}
    assert label_map_dice(full, full, {}) == {}
