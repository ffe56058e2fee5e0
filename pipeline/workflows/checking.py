"""`clinseg check`: read everything once and say all that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import load_job, segmentation_job
from pipeline.data.cases import read_manifest
from pipeline.data.checks import CheckReport, check_study
from pipeline.data.folds import list_folds, split_cases
from pipeline.progress import progress_bar
from pipeline.workflows.material import check_labelled, check_structures
from pipeline.workflows.starting import find_start


def check(config: Path, overrides: Sequence[str] = ()) -> CheckReport:
    """Checks the config, the manifest, the folds, the model to start from and every file of a job.

    Raises:
        FaultError: If the config or the manifest is so wrong that no file can be read.
    """
    job = segmentation_job(load_job(config, overrides))
    study = read_manifest(job.data)
    check_structures(job, study.contract)
    folds = (
        list_folds(study.cases, job.data, job.training.seed) if job.data.fold == "all" else (job.data.fold,)
    )
    splits = [
        split_cases(study.cases, job.data.model_copy(update={"fold": fold}), job.training.seed)
        for fold in folds
    ]
    find_start(job)
    with progress_bar("Checking cases", len(study.cases)) as advance:
        report = check_study(study, advance)
    if not report.errors:
        for split in splits:
            check_labelled(study.contract, [report.labelled[case.id] for case in split.training])
    return report
