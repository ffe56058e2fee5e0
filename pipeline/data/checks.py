"""Judging a case, then a whole study, before anything is trained on it; all faults are told together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from pipeline.data.case_images import Draft, content_hash, draft_images, grid_faults
from pipeline.data.cases import Case, Study
from pipeline.data.images import read_label_with_warnings
from pipeline.errors import Fault, InputError
from pipeline.labels import LabelContract
from pipeline.volume import Grid, Volume


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


@dataclass(frozen=True, eq=False)
class SoundCase:
    """What a check remembers of a case that passed.

    Attributes:
        grid: Of its images.
        labelled: The structures that are labelled in it.
        has_foreground: Whether any voxel of it is.
    """

    grid: Grid
    labelled: Collection[str]
    has_foreground: bool


@dataclass(frozen=True)
class CheckReport:
    """What a check of all cases found; an error keeps a case from training, a warning does not.

    Attributes:
        errors: What keeps cases from training.
        warnings: What was accepted but deserves a look.
        num_cases: How many cases there are.
        sound: What was found of each sound case of a segmentation, by its id.
    """

    errors: tuple[Fault, ...]
    warnings: tuple[Fault, ...]
    num_cases: int
    sound: Mapping[str, SoundCase] = field(default_factory=dict)


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
    sound: dict[str, SoundCase] = {}
    seen: dict[bytes, Case] = {}
    for case in study.cases:
        draft = _read(case, study.contract, len(study.channels))
        if case.label is None:
            draft.errors.append(Fault(case.id, "missing-label", "a case to train on needs a label map"))
        if not draft.errors and (twin := seen.setdefault(content_hash(draft.images), case)) is not case:
            found = draft.warnings if twin.patient == case.patient else draft.errors
            found.append(Fault(case.id, "duplicate-image", _duplicate_message(case, twin)))
        errors += draft.errors
        warnings += draft.warnings
        if not draft.errors:
            sound[case.id] = SoundCase(
                draft.images[0].grid,
                study.contract.labelled_structures(case.labelled, draft.values),
                has_foreground=not draft.values <= {0, study.contract.ignore_value},
            )
        on_case()
    return CheckReport(tuple(errors), tuple(warnings), len(study.cases), sound)


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


def _read(case: Case, contract: LabelContract, num_channels: int) -> Draft:
    draft = draft_images(case, num_channels)
    if (label_path := case.label) is not None:
        for label in draft.keep(partial(read_label_with_warnings, label_path)):
            draft.label = label
            counts = _count_values(label)
            draft.values = frozenset(counts)
            draft.errors += _value_faults(case, counts, contract)
            if draft.images:
                draft.errors += grid_faults(case, "label map", "", label.grid, draft.images[0].grid)
            if draft.values <= {0, contract.ignore_value}:
                message = "the label map holds only background; leave the case out if nothing was drawn"
                draft.warnings.append(Fault(case.id, "empty-label", message))
    return draft


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


def _duplicate_message(case: Case, twin: Case) -> str:
    if twin.patient == case.patient:
        return f"the image has the same voxels as that of case {twin.id}; keep one of them"
    return (
        f"the image has the same voxels as that of case {twin.id}, of another patient, and would leak from "
        "training into validation; remove one, or give both the same patient"
    )
