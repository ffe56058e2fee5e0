"""Judging the images of a classification study before anything is trained on them, and finding copies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipeline.data.case_images import content_hash, draft_images
from pipeline.data.cases import Case
from pipeline.data.checks import CheckReport
from pipeline.data.class_study import ClassStudy
from pipeline.data.folds import Split
from pipeline.data.regions import Regions
from pipeline.errors import Fault, FaultError


def check_class_study(
    study: ClassStudy,
    splits: Sequence[Split],
    on_case: Callable[[], None] = lambda: None,
    regions: Regions | None = None,
) -> CheckReport:
    """Reads every image of a study once and tells all that is wrong with it.

    Args:
        study: The cases and what is declared about them.
        splits: What is to be trained on and validated with, one for each fold that is held out.
        on_case: Called after each case, to show progress.
        regions: Where to look. Label maps are read for it; a model is not asked, which could take hours.

    Returns:
        With copies among the warnings, as `find_duplicates` tells them; `labelled` is empty.
    """
    errors: list[Fault] = []
    warnings: list[Fault] = []
    hashes: dict[str, bytes] = {}
    for case in study.cases:
        draft = draft_images(case, len(study.channels))
        if regions is not None and regions.model_hash is None and not draft.errors:
            try:
                regions.find(case, draft.images)
            except FaultError as error:
                draft.errors += error.faults
        errors += draft.errors
        warnings += draft.warnings
        if not draft.errors:
            hashes[case.id] = content_hash(draft.images)
        on_case()
    found = [fault for split in splits for fault in _duplicate_faults(split, hashes)]
    return CheckReport(tuple(errors), (*warnings, *dict.fromkeys(found)), len(study.cases))


def find_duplicates(cases: Iterable[Case], split: Split, num_channels: int) -> list[Fault]:
    """Finds images with the same voxels that make training or validation less than it seems.

    Args:
        cases: To be compared with each other; what cannot be read is passed over.
        split: Tells which of them are trained on and which validate.
        num_channels: Channels of each image.

    Returns:
        A warning for each validation case that has copies among the training cases, and for each set of
        copies on one side that are said to be of different classes.
    """
    hashes: dict[str, bytes] = {}
    for case in cases:
        draft = draft_images(case, num_channels)
        if not draft.errors:
            hashes[case.id] = content_hash(draft.images)
    return _duplicate_faults(split, hashes)


def _duplicate_faults(split: Split, hashes: Mapping[str, bytes]) -> list[Fault]:
    training, validation = _by_content(split.training, hashes), _by_content(split.validation, hashes)
    faults = []
    for content, copies in validation.items():
        for case in copies if content in training else ():
            twins = training[content]
            message = f"the image has the same voxels as training case {_told(twins)}"
            if odd := [twin for twin in twins if _differ(case, twin)]:
                message += f", and other classes than {_told(odd)}: {_contrast([case, *odd])}"
            message += "; validated with what was trained on, figures are too kind: remove one"
            faults.append(Fault(case.id, "duplicate-image", message))
    for copies in (*training.values(), *validation.values()):
        if any(_differ(copies[0], case) for case in copies[1:]):
            message = (
                f"these cases show the same voxels, but their classes differ: {_contrast(copies)}; mend them"
            )
            faults.append(Fault(_told(copies), "contradicting-classes", message))
    return faults


def _by_content(cases: Iterable[Case], hashes: Mapping[str, bytes]) -> dict[bytes, list[Case]]:
    found: dict[bytes, list[Case]] = defaultdict(list)
    for case in cases:
        if case.id in hashes:
            found[hashes[case.id]].append(case)
    return dict(found)


def _differ(one: Case, other: Case) -> bool:
    return set(one.classes or ()) != set(other.classes or ())


def _told(cases: Sequence[Case]) -> str:
    told = ", ".join(case.id for case in cases[:5])
    return told if len(cases) <= 5 else f"{told} and {len(cases) - 5} more"


def _contrast(cases: Sequence[Case]) -> str:
    return "; ".join(f"{case.id} is {' and '.join(case.classes or ()) or 'of none'}" for case in cases[:5])
