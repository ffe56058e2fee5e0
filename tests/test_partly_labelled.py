"""A study that is labelled in part and ignored in part, from its table to the numbers of the run."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.config import load_job
from pipeline.data.synthetic import write_phantom_study
from pipeline.workflows.tasks.segmentation_material import load_material

CONFIG = Path(__file__).parents[1] / "configs/smoke/hippocampus.yaml"


@pytest.fixture
def study(tmp_path):
    """Five phantoms; nobody drew the core of three of them, and nobody knows about some slices."""
    folder = write_phantom_study(tmp_path / "study", num_cases=5).parent
    lines = ["case,image,label,labelled,fold"]
    for number in range(1, 6):
        image, label = (f"{part}Tr/phantom_{number:02d}.nii.gz" for part in ("images", "labels"))
        stored = nib.load(folder / label)
        array = np.asarray(stored.dataobj).copy()
        if number < 4:
            array[array == 2] = 0
        array[:, :, :6] = 255
        nib.save(nib.Nifti1Image(array, stored.affine), folder / label)
        labelled, fold = ("shell" if number < 4 else "shell; core"), int(number not in (1, 4))
        lines.append(f"phantom_{number:02d},{image},{label},{labelled},{fold}")
    (folder / "cases.csv").write_text("\n".join(lines))
    return folder / "cases.csv"


def settings(study, **more):
    values = {
        "data.manifest": study,
        "data.labels": "{background: 0, shell: 1, core: 2}",
        "data.ignore_value": 255,
        "data.cache_dir": study.parent / "cache",
        "training.epochs": 1,
        "training.patch_size": "[16, 16, 16]",
        "network.features": "[4, 8]",
        "tracking.overlays": 1,
        "tracking.uri": "http://127.0.0.1:9",  # nobody answers: the record stays on this disk
    } | more
    return [f"--set={name}={value}" for name, value in values.items()]


def structures_of(path):
    with path.open() as file:
        return [(row["case"], row["label"]) for row in csv.DictReader(file)]


def test_only_what_is_labelled_is_judged_and_evaluate_agrees(clinseg, study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = clinseg("train", CONFIG, *settings(study))
    assert answer.code == 0, answer.err
    (run,) = (tmp_path / "mlruns/runs").iterdir()
    assert structures_of(run / "cases.csv") == [
        ("phantom_01", "shell"),
        ("phantom_04", "shell"),
        ("phantom_04", "core"),
    ]
    references = tmp_path / "references"
    references.mkdir()
    for case in ("phantom_01", "phantom_04"):
        (references / f"{case}.nii.gz").symlink_to(study.parent / f"labelsTr/{case}.nii.gz")
    folders = run / "validation", references
    answer = clinseg("evaluate", *folders, "--config", run / "config.yaml", "-o", "again.csv")
    assert (answer.code, answer.err) == (0, "")
    assert Path("again.csv").read_text() == (run / "cases.csv").read_text()
    # Two folders alone do not tell what is labelled, but an option does what is ignored.
    assert clinseg("evaluate", *folders, "--ignore", 255, "-o", "plain.csv").code == 0
    plain = Path("plain.csv").read_text().splitlines()
    assert set((run / "cases.csv").read_text().splitlines()) < set(plain) and len(plain) == 5
    answer = clinseg("evaluate", *folders, "--config", run / "config.yaml", "--ignore", 255)
    assert answer.code == 2 and "leave one of them out" in answer.err


def test_a_structure_that_is_labelled_in_no_training_case_is_refused(clinseg, study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study.write_text(study.read_text().replace("shell; core", "shell"))
    for number in (4, 5):
        path = study.parent / f"labelsTr/phantom_{number:02d}.nii.gz"
        stored = nib.load(path)
        array = np.asarray(stored.dataobj).copy()
        array[array == 2] = 0
        nib.save(nib.Nifti1Image(array, stored.affine), path)
    for command in ("check", "train"):
        answer = clinseg(command, CONFIG, *settings(study))
        assert answer.code == 3 and "core: it is labelled in no training case" in answer.err


def test_a_structure_that_no_validation_case_labels_is_told(study, tmp_path):
    job = load_job(CONFIG, [setting.removeprefix("--set=") for setting in settings(study)])
    study.write_text(study.read_text().replace("4.nii.gz,shell; core,0", "4.nii.gz,shell; core,1"))
    material = load_material(job)
    assert (len(material.validation), material.unjudged) == (1, ("core",))


@pytest.mark.slow
def test_a_model_of_nnunets_regions_knows_them_without_the_manifest(clinseg, tmp_path, monkeypatch):
    folder = write_phantom_study(tmp_path / "study", num_cases=4).parent
    for path in sorted((folder / "imagesTr").iterdir()):
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    manifest = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "whole": [1, 2], "core": [2]},
        "regions_class_order": [1, 2],
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(tmp_path)
    more = {"data.labels": "null", "data.ignore_value": "null", "data.num_folds": 2}
    answer = clinseg("train", CONFIG, *settings(folder / "dataset.json", **more))
    assert answer.code == 0, answer.err
    shutil.move(folder / "dataset.json", tmp_path / "elsewhere.json")
    answer = clinseg("predict", "latest", folder / "imagesTr", "-o", tmp_path / "out")
    assert answer.code == 0, answer.err
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["structures"] == {"whole": [1, 2], "core": [2]}
