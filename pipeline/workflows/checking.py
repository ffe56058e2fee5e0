"""`clinseg check`: read everything once and say all that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import load_job
from pipeline.data.cases import read_manifest
from pipeline.data.checks import CheckReport, check_study
from pipeline.data.folds import list_folds, split_cases
from pipeline.labels import LabelContract
from pipeline.progress import progress_bar
from pipeline.workflows.material import check_structures


def check(config: Path, overrides: Sequence[str] = ()) -> CheckReport:
    """Checks the config, the manifest, the folds and every file of a job.

    Raises:
        FaultError: If the config or the manifest is so wrong that no file can be read.
    """
    job = load_job(config, overrides)
    study = read_manifest(job.data)
    check_structures(job, LabelContract(study.labels, job.data.regions))
    if job.data.fold == "all":
        list_folds(study.cases, job.data, job.training.seed)
    else:
        split_cases(study.cases, job.data, job.training.seed)
    with progress_bar("Checking cases", len(study.cases)) as advance:
        return check_study(study, advance)
