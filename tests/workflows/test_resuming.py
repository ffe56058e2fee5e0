"""A run goes on with the cases, folds and labels that it was started with, or not at all."""

import json
from pathlib import Path

import pytest

from pipeline.checkpoint import Checkpoint, write_checkpoint
from pipeline.config import SegmentationJob, job_to_mapping
from pipeline.data.cases import read_manifest
from pipeline.data.synthetic import write_phantom_study
from pipeline.errors import IntegrityError
from pipeline.tracking import RunFolder
from pipeline.training.distributed import ALONE
from pipeline.workflows.runs.models import LAST
from pipeline.workflows.runs.resuming import check_fold, load_state
from pipeline.workflows.tasks.segmentation_material import load_material, pin_labels

NUM_CASES = 4


@pytest.fixture
def job(tmp_path):
    write_phantom_study(tmp_path, num_cases=NUM_CASES, shape=(8, 8, 8))
    write_folds(tmp_path, (0, 1, 1, 2))
    labels = {"background": 0, "shell": 1, "core": 2}
    return make_job(tmp_path, manifest=tmp_path / "cases.csv", labels=labels)


def make_job(folder, **data):
    return SegmentationJob.model_validate(
        {
            "data": {"cache_dir": folder / "cache", **data},
            "network": {"features": (4, 8)},
            "training": {"epochs": 1, "patch_size": (8, 8, 8)},
        }
    )


def write_folds(folder: Path, folds) -> None:
    rows = []
    for number, fold in enumerate(folds, 1):
        name = f"phantom_0{number}.nii.gz"
        rows.append(f"c{number},imagesTr/{name},labelsTr/{name},{fold}")
    (folder / "cases.csv").write_text("\n".join(["case,image,label,fold", *rows]) + "\n")


def keep(folder, job):
    """The run of a training of this job, and what it kept."""
    material = load_material(job)
    run = RunFolder(folder / "run", "study", "segmentation", "", 0)
    kept = Checkpoint(
        weights={},
        job=job_to_mapping(job),
        labels=material.labels,
        structures=dict(material.structures),
        channels=material.channels,
        intensity=None,
        provenance={
            "data_hash": material.data_hash,
            "training_cases": [case.id for case in material.split.training],
            "validation_cases": [case.id for case in material.split.validation],
        },
        state={"epoch": 1},
    )
    write_checkpoint(run.path / LAST, kept)
    return run, kept


def test_a_run_goes_on_with_the_folds_it_was_started_with(job, tmp_path):
    run, _ = keep(tmp_path, job)
    assert load_state(run, load_material(job), ALONE) == {"epoch": 1}
    write_folds(tmp_path, (1, 0, 1, 2))
    with pytest.raises(IntegrityError, match=r"training cases are not those.*data-changed"):
        load_state(run, load_material(job), ALONE)


def test_a_run_goes_on_with_the_labels_it_was_started_with(job, tmp_path):
    run, _ = keep(tmp_path, job)
    swapped = job.data.model_copy(update={"labels": {"background": 0, "shell": 2, "core": 1}})
    with pytest.raises(IntegrityError, match=r"labels or classes are not those.*data-changed"):
        load_state(run, load_material(job.model_copy(update={"data": swapped})), ALONE)


def test_labels_of_a_manifest_are_kept_with_the_job(tmp_path):
    """Whoever renames them in the manifest later does not rename those of a run."""
    manifest = write_phantom_study(tmp_path, num_cases=1, shape=(8, 8, 8))
    content = json.loads(manifest.read_text())
    pinned = pin_labels(make_job(tmp_path, manifest=manifest))
    assert pinned.data.labels == {"background": 0, "shell": 1, "core": 2}
    manifest.write_text(json.dumps(content | {"labels": {"0": "background", "1": "core", "2": "shell"}}))
    assert read_manifest(pinned.data).contract.labels == pinned.data.labels


def test_folds_that_were_dealt_anew_are_not_joined(job, tmp_path):
    run, kept = keep(tmp_path, job)
    other = job.model_copy(update={"data": job.data.model_copy(update={"fold": 1})})
    check_fold(load_material(other), kept, run)
    write_folds(tmp_path, (1, 0, 1, 2))  # the case that fold 0 has validated would be validated again
    with pytest.raises(IntegrityError, match=r"folds are not those.*data-changed"):
        check_fold(load_material(other), kept, run)
