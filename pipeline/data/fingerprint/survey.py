"""Measures every case of a study for a plan: its grid, what lies in it, and how large the structures are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.data.cases import Case, Study
from pipeline.data.checks import read_checked_case
from pipeline.data.fingerprint.summary import (
    Axes,
    CaseFingerprint,
    ChannelIntensities,
    Fingerprint,
    StructureSize,
)
from pipeline.data.images import read_label_map
from pipeline.errors import Fault, InputError
from pipeline.volume import Affine, Volume

_VOXELS_PER_CASE = 100_000
# A slice belongs to the content if this share of it is brighter than this share of the range of intensities:
# neither the noise of the air nor a few odd voxels then make a volume look full.
_CONTENT_SHARE, _CONTENT_LEVEL = 0.01, 0.1


def find_labels(cases: Sequence[Case], on_case: Callable[[], None] = lambda: None) -> dict[str, int]:
    """Names for the values that occur in the label maps: `background` for 0, `label_<value>` for the others.

    Raises:
        InputError: If a label map is missing or damaged, or holds what can be no label; all faults together.
    """
    values = {0}
    faults: list[Fault] = []
    for case in cases:
        if case.label is None:
            faults.append(_missing_label(case))
        else:
            try:
                values |= set(np.unique(read_label_map(case.label).array).tolist())
            except InputError as error:
                faults += error.faults
        on_case()
    if faults:
        raise InputError(faults)
    return {f"label_{value}" if value else "background": value for value in sorted(values)}


def survey_study(study: Study, on_case: Callable[[], None] = lambda: None) -> Fingerprint:
    """Reads every case once and measures it.

    Raises:
        InputError: With all faults of all cases.
    """
    cases: list[CaseFingerprint] = []
    faults: list[Fault] = []
    for case in study.cases:
        try:
            cases.append(_survey_case(case, study))
        except InputError as error:
            faults += error.faults
        on_case()
    if faults:
        raise InputError(faults)
    return Fingerprint(
        channels=study.channels,
        labels=study.labels,
        structures=study.contract.structures,
        num_patients=len({case.patient for case in study.cases}),
        folds=tuple(sorted({case.fold for case in study.cases if case.fold is not None})),
        cases=tuple(cases),
    )


def _survey_case(case: Case, study: Study) -> CaseFingerprint:
    checked = read_checked_case(case, study.contract, len(study.channels))
    if checked.label is None:
        raise InputError(_missing_label(case))
    grid = checked.images[0].grid
    return CaseFingerprint(
        case=case.id,
        orientation=grid.orientation,
        shape=_anatomical(grid.shape, grid.affine),
        spacing=_anatomical(grid.spacing, grid.affine),
        content=_anatomical(_measure_content(checked.images), grid.affine),
        channels=tuple(_measure_channel(image) for image in checked.images),
        structures=_measure_structures(checked.label, study.contract.structures),
    )


def _missing_label(case: Case) -> Fault:
    message = "a case to train on needs a label map; add one or take the case out of the manifest"
    return Fault(case.id, "missing-label", message)


def _measure_channel(image: Volume) -> ChannelIntensities:
    voxels = _thinned(image)
    low, middle, high = np.percentile(voxels, [0.5, 50, 99.5])
    return ChannelIntensities(
        float(low), float(middle), float(high), float(voxels.mean()), float(voxels.std())
    )


def _thinned(image: Volume) -> NDArray[np.float64]:
    """Voxels at even steps, so that a large image takes no longer than a small one."""
    flat = image.array.reshape(-1)
    return flat[:: max(1, flat.size // _VOXELS_PER_CASE)].astype(np.float64)


def _measure_content(images: Sequence[Volume]) -> list[int]:
    """Voxels per stored axis of the box in which any channel is brighter than air."""
    shape = images[0].array.shape
    is_content = np.zeros(shape, dtype=bool)
    for image in images:
        low, high = np.percentile(_thinned(image), [0.5, 99.5])
        is_content |= image.array > low + _CONTENT_LEVEL * (high - low)
    lengths = []
    for axis, length in enumerate(shape):
        share = is_content.mean(axis=tuple(other for other in range(3) if other != axis))
        slices = np.flatnonzero(share >= _CONTENT_SHARE)
        lengths.append(int(slices[-1] - slices[0] + 1) if len(slices) else length)
    return lengths


def _measure_structures(label: Volume, structures: Mapping[str, tuple[int, ...]]) -> dict[str, StructureSize]:
    boxes = dict(enumerate(ndimage.find_objects(label.array.astype(np.int32, copy=False)), 1))
    sizes = {}
    for name, values in structures.items():
        if found := [box for value in values if (box := boxes.get(value)) is not None]:
            box = tuple(
                slice(min(part.start for part in along), max(part.stop for part in along))
                for along in zip(*found, strict=True)
            )
            sizes[name] = _measure_structure(np.isin(label.array[box], values), label)
    return sizes


def _measure_structure(mask: NDArray[np.bool_], label: Volume) -> StructureSize:
    voxels = int(np.count_nonzero(mask))
    thickness = []
    for axis, mm in enumerate(label.grid.spacing):
        lines = np.moveaxis(mask, axis, 0)
        num_runs = np.count_nonzero(lines[0]) + np.count_nonzero(lines[1:] & ~lines[:-1])
        thickness.append(float(mm * voxels / num_runs))
    return StructureSize(voxels, voxels * label.grid.voxel_ml, _anatomical(thickness, label.grid.affine))


def _anatomical(values: Sequence[float], affine: Affine) -> Axes:
    """Values per stored axis, in the order left-right, back-front, down-up."""
    places = [int(axis) for axis in io_orientation(affine)[:, 0]]
    ordered = dict(zip(places, values, strict=True))
    return ordered[0], ordered[1], ordered[2]
