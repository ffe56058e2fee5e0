"""Judging a case, then a whole study, before anything is trained on it; all faults are told together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from pipeline.data.cases import Case, Study
from pipeline.data.geometry import corner_distance
from pipeline.data.images import read_label_with_warnings, read_with_warnings
from pipeline.data.nifti import Reading
from pipeline.errors import Fault, FaultError, InputError
from pipeline.labels import LabelContract
from pipeline.volume import Grid, Volume

GRID_TOLERANCE_MM = 0.05
"""How far apart the corners of two volumes of one case may lie: headers store rounded numbers."""


@dataclass(frozen=True, eq=False)
class CheckedCase:
    """The voxels of a case that passed.

    Attributes:
        images: One volume per channel, all on one grid.
        label: The label map on that grid, or None if the case has none.
        values: The values that the label map holds.
        warnings: What was accepted but deserves a look.
    """

    images: tuple[Volume, ...]
    label: Volume | None
    values: frozenset[int] = frozenset()
    warnings: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """What a check of all cases found; an error keeps a case from training, a warning does not.

    Attributes:
        errors: What keeps cases from training.
        warnings: What was accepted but deserves a look.
        num_cases: How many cases there are.
        labelled: The structures that are labelled in each sound case, by its id.
    """

    errors: tuple[Fault, ...]
    warnings: tuple[Fault, ...]
    num_cases: int
    labelled: Mapping[str, Collection[str]]


def read_checked_case(case: Case, contract: LabelContract, num_channels: int) -> CheckedCase:
    """Reads images and label map of a case, each file once.

    Args:
        case: What to read; a case without a label map is fine here.
        contract: What label values mean.
        num_channels: Channels the images must have together.

    Raises:
        InputError: With all faults of the case, lack of memory included.
    """
    draft = _read(case, contract, num_channels)
    if draft.errors:
        raise InputError(draft.errors)
    return CheckedCase(tuple(draft.images), draft.label, draft.values, tuple(draft.warnings))


def check_study(study: Study, on_case: Callable[[], None] = lambda: None) -> CheckReport:
    """Reads every file of a study once and tells all that is wrong with it.

    Beyond each case for itself: a label map for every case, and no image that occurs twice, which would leak
    from training into validation if the patients are said to be different ones.

    Args:
        study: The cases and what is declared about them.
        on_case: Called after each case, to show progress.
    """
    errors: list[Fault] = []
    warnings: list[Fault] = []
    labelled: dict[str, Collection[str]] = {}
    seen: dict[bytes, Case] = {}
    for case in study.cases:
        draft = _read(case, study.contract, len(study.channels))
        if case.label is None:
            draft.errors.append(Fault(case.id, "missing-label", "a case to train on needs a label map"))
        if not draft.errors and (twin := seen.setdefault(_content(draft.images), case)) is not case:
            found = draft.warnings if twin.patient == case.patient else draft.errors
            found.append(Fault(case.id, "duplicate-image", _duplicate_message(case, twin)))
        errors += draft.errors
        warnings += draft.warnings
        if not draft.errors:
            labelled[case.id] = study.contract.labelled_structures(case.labelled, draft.values)
        on_case()
    return CheckReport(tuple(errors), tuple(warnings), len(study.cases), labelled)


def labelled_fault(case: Case, contract: LabelContract, present: Collection[int]) -> Fault | None:
    """The fault of a label map that holds structures which the manifest does not call labelled, if it does.

    A value that a labelled region holds as well is no contradiction: it is that region's voxel.

    Args:
        case: With what the manifest says of it.
        contract: What label values mean.
        present: The values that the label map holds.
    """
    if case.labelled is None:
        return None
    named = {value for name in case.labelled for value in contract.structures[name]}
    odd = [name for name, values in contract.structures.items() if set(values) & set(present) - named]
    if not odd:
        return None
    message = (
        f"the label map holds {', '.join(odd)}, which the manifest does not name as labelled in this case; "
        "name it there, or take it out of the label map"
    )
    return Fault(case.id, "labelled", message)


@dataclass
class _Draft:
    """What is known of a case while it is being read."""

    images: list[Volume] = field(default_factory=list)
    label: Volume | None = None
    values: frozenset[int] = frozenset()
    errors: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)

    def keep(self, read: Callable[[], Reading]) -> tuple[Volume, ...]:
        """The volumes of a file, or none and its faults."""
        try:
            reading = read()
        except FaultError as error:
            self.errors += error.faults
            return ()
        self.warnings += reading.warnings
        return reading.volumes


def _read(case: Case, contract: LabelContract, num_channels: int) -> _Draft:
    draft = _Draft()
    for path in case.images:
        draft.images += draft.keep(partial(read_with_warnings, path))
    if not draft.errors:
        draft.errors += _image_faults(case, draft.images, num_channels)
        draft.warnings += _constant_images(case, draft.images)
    if (label_path := case.label) is not None:
        for label in draft.keep(partial(read_label_with_warnings, label_path)):
            draft.label = label
            counts = _count_values(label)
            draft.values = frozenset(counts)
            draft.errors += _value_faults(case, counts, contract)
            if draft.images:
                draft.errors += _grid_faults(case, "label map", "", label.grid, draft.images[0].grid)
            if draft.values <= {0, contract.ignore_value}:
                message = "the label map holds only background; leave the case out if nothing was drawn"
                draft.warnings.append(Fault(case.id, "empty-label", message))
    return draft


def _image_faults(case: Case, images: Sequence[Volume], num_channels: int) -> Iterator[Fault]:
    if len(images) != num_channels:
        message = f"{num_channels} channels are declared, the images hold {len(images)}"
        yield Fault(case.id, "num-channels", message)
    for index, image in enumerate(images[1:], 1):
        yield from _grid_faults(case, f"channel {index}", "channel-", image.grid, images[0].grid)


def _grid_faults(case: Case, what: str, prefix: str, grid: Grid, reference: Grid) -> Iterator[Fault]:
    """Faults of a grid that should be that of the (first) image."""
    if grid.shape != reference.shape:
        message = f"the {what} has shape {grid.shape}, the image {reference.shape}; resample it to the image"
        yield Fault(case.id, f"{prefix}shape-mismatch", message)
        return
    distance = corner_distance(grid.affine, reference.affine, grid.shape)
    if distance > GRID_TOLERANCE_MM:
        message = (
            f"the {what} lies up to {distance:.3g} mm from the image (at most {GRID_TOLERANCE_MM:g} mm is "
            "accepted); resample it to the image, or copy the image's affine if the voxels do match"
        )
        yield Fault(case.id, f"{prefix}affine-mismatch", message)


def _constant_images(case: Case, images: Iterable[Volume]) -> Iterator[Fault]:
    for index, image in enumerate(images):
        if (value := image.array.min()) == image.array.max():
            message = f"every voxel of channel {index} is {value:g}; is this the right file?"
            yield Fault(case.id, "constant-image", message)


def _value_faults(case: Case, counts: Mapping[int, int], contract: LabelContract) -> Iterator[Fault]:
    labels = contract.labels
    declared = {*labels.values(), contract.ignore_value}
    if undeclared := {value: count for value, count in counts.items() if value not in declared}:
        told = ", ".join(f"{value} ({count} voxels)" for value, count in list(undeclared.items())[:10])
        more = f" and {len(undeclared) - 10} more" if len(undeclared) > 10 else ""
        message = (
            f"undeclared values {told}{more}; mend the label map, or declare them beside "
            f"{', '.join(f'{value} {name}' for name, value in labels.items())}"
        )
        yield Fault(case.id, "label-values", message)
    if fault := labelled_fault(case, contract, counts):
        yield fault


def _count_values(label: Volume) -> dict[int, int]:
    """How many voxels have each value."""
    if label.array.dtype.itemsize > 2:
        return {int(v): int(n) for v, n in zip(*np.unique(label.array, return_counts=True), strict=True)}
    counts = np.zeros(2 ** (8 * label.array.dtype.itemsize), dtype=np.int64)
    for k in range(label.array.shape[2]):  # bincount widens to 64 bits: one slice at a time
        counts += np.bincount(label.array[:, :, k].ravel(order="K"), minlength=len(counts))
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _content(images: Iterable[Volume]) -> bytes:
    """Hash of shapes and values, not of affine and stored type, so that a copy saved anew is still seen."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(repr(image.grid.shape).encode())
        digest.update(np.asfortranarray(image.array, dtype=np.float32).tobytes(order="A"))
    return digest.digest()


def _duplicate_message(case: Case, twin: Case) -> str:
    if twin.patient == case.patient:
        return f"the image has the same voxels as that of case {twin.id}; keep one of them"
    return (
        f"the image has the same voxels as that of case {twin.id}, of another patient, and would leak from "
        "training into validation; remove one, or give both the same patient"
    )
