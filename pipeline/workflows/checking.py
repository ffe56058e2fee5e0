"""`clinseg check`: read everything once and say all that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import load_job
from pipeline.data.checks import CheckReport
from pipeline.data.folds import list_folds, split_cases
from pipeline.progress import progress_bar
from pipeline.workflows.starting import find_start
from pipeline.workflows.tasks import COLUMNS


def check(config: Path, overrides: Sequence[str] = ()) -> CheckReport:
    """Checks the config, the manifest, the folds, the model to start from and every file of a job.

    Raises:
        FaultError: If the config or the manifest is so wrong that no file can be read.
    """
    job = load_job(config, overrides)
    column = COLUMNS[job.task]
    cases = column.read_cases(job)
    folds = list_folds(cases, job.data) if job.data.fold == "all" else (job.data.fold,)
    splits = [split_cases(cases, job.data.model_copy(update={"fold": fold})) for fold in folds]
    find_start(job)
    with progress_bar("Checking cases", len(cases)) as advance:
        return column.check(job, splits, advance)
