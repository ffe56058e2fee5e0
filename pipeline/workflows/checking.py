"""`clinseg check`: read everything once and say all that is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config import Job, load_job
from pipeline.data.cases import Case
from pipeline.data.checks import CheckReport
from pipeline.data.folds import list_folds, split_cases
from pipeline.data.nifti import is_nifti
from pipeline.errors import Fault
from pipeline.privacy import header_texts
from pipeline.progress import progress_bar
from pipeline.workflows.runs.starting import find_start
from pipeline.workflows.tasks.named import COLUMNS


def check(config: Path, overrides: Sequence[str] = ()) -> CheckReport:
    """Checks the config, the manifest, the folds, the model to start from and every file of a job.

    Raises:
        FaultError: If the config or the manifest is so wrong that no file can be read.
    """
    job = load_job(config, overrides)
    cases = COLUMNS[job.task].read_cases(job)
    find_start(job)
    report = check_cases(job, cases)
    return replace(report, warnings=(*report.warnings, *_header_warnings(str(job.data.manifest), cases)))


def check_cases(job: Job, cases: Sequence[Case]) -> CheckReport:
    """Reads every file of a job once, for all folds that it names.

    Raises:
        FaultError: If the folds are so wrong that no file need be read.
    """
    folds = list_folds(cases, job.data) if job.data.fold == "all" else (job.data.fold,)
    splits = [split_cases(cases, job.data.model_copy(update={"fold": fold})) for fold in folds]
    with progress_bar("Checking cases", len(cases)) as advance:
        return COLUMNS[job.task].check(job, splits, advance)


def _header_warnings(where: str, cases: Iterable[Case]) -> Iterator[Fault]:
    """One warning for all files that carry text in which a patient's name could stand; never the text."""
    files = {
        path: case.id for case in cases for path in (*case.images, case.label) if path and is_nifti(path)
    }
    told = {path: texts for path in files if path.is_file() and (texts := header_texts(path))}
    if told:
        fields = ", ".join(dict.fromkeys(text for texts in told.values() for text in texts))
        first = next(iter(told))
        message = (
            f"{len(told)} NIfTI files carry text in their headers ({fields}) in which a name could stand, "
            f"such as those of case {files[first]}; look at it, or take it out with clinseg deidentify"
        )
        yield Fault(where, "header-text", message)
