"""How well a predicted structure agrees with its reference; never NaN, whatever is missing.

A structure is a named set of label values (a class or a region); its mask is the union of them. Borders,
distances and the rules for missing structures are stated once, in `structure_metrics` and `docs/metrics.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

STRUCTURE_METRICS = (
    "dice",
    "iou",
    "hd95_mm",
    "asd_mm",
    "nsd",
    "sensitivity",
    "precision",
    "volume_ml",
    "reference_volume_ml",
)

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

_ROUNDING_MM = 1e-6
"""Slack of the tolerance: spacings that passed through float32 must not turn 1 mm into 1.00000001 mm."""


def structure_metrics(
    prediction: Mask, reference: Mask, spacing: Spacing, tolerance_mm: float = 1.0
) -> dict[str, float]:
    """Compares one structure of one case.

    The border of a mask is the mask minus its erosion by the 6-neighbourhood; what lies outside the image is
    no part of the mask, and an axis with a single voxel has no border (one slice is compared in its plane).
    Each border voxel of either mask has a distance to the nearest border voxel of the other, between voxel
    centres:

    * `hd95_mm`: the larger of the two directed 95th percentiles (linear interpolation), MONAI's definition.
    * `asd_mm`: the mean over the distances of both directions, pooled; MONAI's symmetric average surface
      distance and MedPy's `assd`.
    * `nsd`: the share of border voxels, of both masks together, no farther than `tolerance_mm` from the other
      border; MONAI's surface Dice with `use_subvoxels=False` (Nikolov et al., arXiv:1809.04430, count
      surface area instead).

    If both masks are empty they agree: shares are 1 and distances 0. If exactly one is empty (the structure
    was missed or invented), every share is 0 and the distances are the physical diagonal of the image, which
    no real distance reaches (the rules of BraTS).

    Args:
        prediction: `(I, J, K)`.
        reference: `(I, J, K)`.
        spacing: Millimetres per voxel along the array axes.
        tolerance_mm: Largest distance at which two borders count as agreeing.

    Returns:
        A value for each of `STRUCTURE_METRICS`.

    Raises:
        ValueError: If the masks have different shapes.
    """
    prediction, reference = np.asarray(prediction, dtype=bool), np.asarray(reference, dtype=bool)
    _check_shapes(prediction, reference)
    overlap = int(np.count_nonzero(prediction & reference))
    num_predicted, num_true = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    if num_predicted and num_true:
        distances = _distance_metrics(prediction, reference, spacing, tolerance_mm)
    else:
        distances = _distance_metrics_without_border(num_predicted == num_true, prediction.shape, spacing)
    voxel_ml = math.prod(spacing) / 1000.0
    return {
        "dice": _share(2 * overlap, num_predicted + num_true),
        "iou": _share(overlap, num_predicted + num_true - overlap),
        **distances,
        "sensitivity": _share(overlap, num_true, if_nothing=num_predicted == 0),
        "precision": _share(overlap, num_predicted, if_nothing=num_true == 0),
        "volume_ml": num_predicted * voxel_ml,
        "reference_volume_ml": num_true * voxel_ml,
    }


def label_map_dice(
    prediction: NDArray[np.integer], reference: NDArray[np.integer], structures: Mapping[str, tuple[int, ...]]
) -> dict[str, float]:
    """Dice of every structure from one pass over two label maps; fast enough for each validation.

    Args:
        prediction: Label values, any shape.
        reference: Label values of the same shape.
        structures: Non-negative label values per structure; structures may overlap.

    Returns:
        The same Dice per structure as `structure_metrics`: 1 if it is in neither map, 0 if it is in only one.

    Raises:
        ValueError: If the maps have different shapes.
    """
    _check_shapes(prediction, reference)
    values = sorted({value for members in structures.values() for value in members})
    counts = joint_counts(prediction, reference, values)
    dice = {}
    for name, members in structures.items():
        codes = [values.index(value) + 1 for value in set(members)]
        overlap = int(counts[np.ix_(codes, codes)].sum())
        dice[name] = _share(2 * overlap, int(counts[codes].sum() + counts[:, codes].sum()))
    return dice


def structure_mask(label_map: NDArray[np.generic], values: tuple[int, ...]) -> Mask:
    """Where `label_map` holds one of `values`; of the same shape."""
    if len(values) == 1:
        return np.asarray(label_map == values[0])
    return np.isin(label_map, values)


def joint_counts(
    prediction: NDArray[np.integer], reference: NDArray[np.integer], values: list[int]
) -> NDArray[np.int64]:
    """Voxels per pair of what was predicted (rows) and what is true (columns).

    Args:
        prediction: Label values, any shape.
        reference: Label values of the same shape.
        values: Non-negative label values; code n + 1 is the nth of them, code 0 every other label.

    Returns:
        Counts by codes, `(len(values) + 1, len(values) + 1)`.
    """
    num_codes = len(values) + 1
    code_of = np.zeros(max(values, default=0) + 2, dtype=np.intp)
    code_of[values] = np.arange(1, num_codes)
    pairs = code_of.take(prediction.ravel(), mode="clip") * num_codes
    pairs += code_of.take(reference.ravel(), mode="clip")
    return np.bincount(pairs, minlength=num_codes**2).reshape(num_codes, num_codes)


def _check_shapes(prediction: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
    if prediction.shape != reference.shape:
        raise ValueError(f"the prediction has shape {prediction.shape}, its reference {reference.shape}")


def _share(part: int, whole: int, *, if_nothing: bool = True) -> float:
    return part / whole if whole else float(if_nothing)


def _distance_metrics(
    prediction: Mask, reference: Mask, spacing: Spacing, tolerance_mm: float
) -> dict[str, float]:
    from_prediction, from_reference = _border_distances(prediction, reference, spacing)
    pooled = np.concatenate((from_prediction, from_reference))
    return {
        "hd95_mm": float(max(np.percentile(from_prediction, 95), np.percentile(from_reference, 95))),
        "asd_mm": float(pooled.mean()),
        "nsd": float(np.mean(pooled <= tolerance_mm + _ROUNDING_MM)),
    }


def _distance_metrics_without_border(
    agree: bool, shape: tuple[int, ...], spacing: Spacing
) -> dict[str, float]:
    diagonal_mm = 0.0 if agree else math.hypot(*(n * mm for n, mm in zip(shape, spacing, strict=True)))
    return {"hd95_mm": diagonal_mm, "asd_mm": diagonal_mm, "nsd": float(agree)}


def _border_distances(
    prediction: Mask, reference: Mask, spacing: Spacing
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Millimetres from each border voxel of one mask to the other's border; first from the prediction's."""
    neighbourhood = ndimage.generate_binary_structure(3, 1)
    for axis, num_voxels in enumerate(prediction.shape):
        if num_voxels == 1 < prediction.size:  # a single voxel is all border
            neighbourhood = neighbourhood.take([1], axis=axis)
    box = _bounding_box(prediction | reference)
    predicted, true = (
        mask[box] & ~ndimage.binary_erosion(mask[box], neighbourhood) for mask in (prediction, reference)
    )
    return _distances(predicted, true, spacing), _distances(true, predicted, spacing)


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    # Both borders lie inside, so no distance changes; erosion sees background beyond the box, as is there.
    box: tuple[slice, ...] = ndimage.find_objects(mask.view(np.uint8))[0]
    return box


def _distances(border: Mask, other: Mask, spacing: Spacing) -> NDArray[np.float64]:
    # Asking for the nearest voxel and measuring only at the border takes half the time and memory of a full
    # distance map; a k-d tree is faster on smooth masks but needs a minute for a speckled one of 200 cubed.
    nearest = ndimage.distance_transform_edt(
        ~other, sampling=spacing, return_distances=False, return_indices=True
    )
    steps = np.argwhere(border).T - nearest[:, border]
    return np.asarray(np.linalg.norm(steps * np.asarray(spacing)[:, None], axis=0))
