"""What keeps images from being enhanced or learnt from, found by reading every file once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from pipeline.config import EnhancementJob
from pipeline.data.case_images import Draft, distance_faults, draft_images, slice_faults
from pipeline.data.cases import Case
from pipeline.data.checks import CheckReport
from pipeline.data.corrupting import corrupt
from pipeline.data.enhancement_study import (
    EnhancementStudy,
    assign_roles,
    find_truths,
    read_enhancement_study,
)
from pipeline.data.folds import Split
from pipeline.data.truths import truth_fault
from pipeline.errors import Fault, FaultError
from pipeline.volume import Grid


def check_enhancement(
    job: EnhancementJob, splits: Sequence[Split], on_case: Callable[[], None]
) -> CheckReport:
    """Reads every file of a job once and tells all that a training would refuse.

    Sources are made worse as in a training, which may take longer than to read them.

    Args:
        job: To be trained.
        splits: Of each fold that it is to be trained on.
        on_case: Called after each case.
    """
    study = read_enhancement_study(job.data)
    errors: list[Fault] = []
    warnings: list[Fault] = []
    sources = _find_sources(study, splits, job, errors)
    grids: dict[tuple[bool, str], Grid] = {}
    roles = [*((case, True) for case in study.sources), *((case, False) for case in study.targets)]
    for case, is_source in roles:
        draft = draft_images(case, len(study.channels))
        if not draft.errors:
            _check_usable(case, draft, job, is_source=is_source and case.id in sources)
        errors += draft.errors
        warnings += draft.warnings
        if not draft.errors:
            grids[is_source, case.id] = draft.images[0].grid
        on_case()
    if job.data.corruption is None:
        # Without truths a CycleGAN is only judged by fewer cases.
        told = errors if job.training.method == "supervised" else warnings
        for name in find_truths(study, job.data):
            image, truth = grids.get((True, name)), grids.get((False, name))
            if image is not None and truth is not None and (fault := truth_fault(name, truth, image)):
                told.append(fault)
    unique = tuple(dict.fromkeys(errors)), tuple(dict.fromkeys(warnings))
    return CheckReport(*unique, len(study.cases))


def _find_sources(
    study: EnhancementStudy, splits: Sequence[Split], job: EnhancementJob, errors: list[Fault]
) -> Collection[str]:
    """Ids of what any of the trainings makes worse or enhances; adds what keeps one from being divided."""
    sources: set[str] = set()
    for split in splits:
        try:
            roles = assign_roles(study, split, job.data, job.training)
        except FaultError as error:
            errors += error.faults
        else:
            sources |= {case.id for case in (*roles.sources, *roles.validation)}
    return sources


def _check_usable(case: Case, draft: Draft, job: EnhancementJob, *, is_source: bool) -> None:
    """Adds what keeps images that were read from being prepared."""
    grid = draft.images[0].grid
    if is_source and job.data.corruption is not None:
        try:
            grid = corrupt(draft.images, job.data.corruption, case.id)[0].grid
        except FaultError as error:
            draft.errors += error.faults
    orientation = job.preprocessing.orientation
    shapes = {case.id: grid.shape_along(orientation)}
    draft.errors += slice_faults(job.network.dimensions, orientation, shapes)
    if is_source:
        draft.errors += distance_faults(job, {case.id: grid.spacing_along(orientation)[-1]})
