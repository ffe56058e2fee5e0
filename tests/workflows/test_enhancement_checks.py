"""`clinseg check` of an enhancement refuses what a training would, for the same reasons."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.config import load_job
from pipeline.errors import FaultError
from pipeline.workflows.checking import check
from pipeline.workflows.tasks.enhancement_material import load_enhancement_material

CONFIG = Path(__file__).parents[2] / "configs/smoke/enhancement.yaml"
SHAPE = (12, 11, 10)
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])
TURNED = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2), (0, 0, 0)) @ AFFINE
PAIRED = {"data.corruption": "null", "training.method": "supervised"}


def save(path, shape=SHAPE, affine=AFFINE, lowest=0):
    path.parent.mkdir(exist_ok=True)
    values = np.random.default_rng(len(path.name)).integers(lowest, 300, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(values, affine), path)


@pytest.fixture
def compare(tmp_path):
    """What a check says of a job on `in` and `true`, and what a training of fold 0 says, as sets of texts."""
    for number in range(4):
        for place in "in", "true":
            save(tmp_path / f"{place}/p{number}.nii.gz")

    def run(settings, *, paired=True):
        target = {"data.target": tmp_path / "true"} if paired else {}
        given = {"data.manifest": tmp_path / "in", "data.num_folds": 2, "data.cache_dir": tmp_path / "cache"}
        told = [f"{name}={value}" for name, value in (given | target | settings).items()]
        report = check(CONFIG, told)
        try:
            load_enhancement_material(load_job(CONFIG, told))
        except FaultError as error:
            return report, {str(fault) for fault in report.errors}, set(map(str, error.faults))
        return report, {str(fault) for fault in report.errors}, set()

    return run


def test_what_is_fit_is_fit_for_both(compare):
    report, found, refused = compare(PAIRED)
    assert found == refused == set() and not report.warnings
    _, found, refused = compare({}, paired=False)
    assert found == refused == set()


def test_images_that_cannot_be_made_worse(compare, tmp_path):
    for number in range(4):
        save(tmp_path / f"in/p{number}.nii.gz", lowest=-100)
    _, found, refused = compare({}, paired=False)
    assert found == refused and len(found) == 3  # one of them is a target
    _, everywhere, _ = compare({"training.method": "supervised"}, paired=False)
    assert len(everywhere) == 4 and all("[corruption]" in text for text in everywhere)


def test_truths_that_are_missing(compare, tmp_path):
    for number in range(4):
        (tmp_path / f"true/p{number}.nii.gz").rename(tmp_path / f"true/q{number}.nii.gz")
    _, found, refused = compare(PAIRED)
    assert found == refused and "unpaired" in str(found)


def test_truths_that_are_turned(compare, tmp_path):
    for number in range(2):
        save(tmp_path / f"true/p{number}.nii.gz", affine=TURNED)
    _, found, refused = compare(PAIRED)
    assert found == refused and len(found) == 2
    report, found, refused = compare({"data.corruption": "null"})
    assert found == refused == set() and [fault.rule for fault in report.warnings] == ["truth-grid"] * 2


def test_slices_that_would_be_lines(compare, tmp_path):
    for number in range(4):
        for place in "in", "true":
            save(tmp_path / f"{place}/p{number}.nii.gz", shape=(1, 20, 18))
    flat = {
        "network.dimensions": 2,
        "training.patch_size": "[16, 16]",
        "augmentation.mirror_axes": "[]",
        "data.corruption": "null",
    }
    _, found, refused = compare(flat)
    assert found == refused and "set preprocessing.orientation to ASR" in str(found)
    _, found, refused = compare(flat | {"preprocessing.orientation": "ASR"})
    assert found == refused == set()


def test_slices_as_far_apart_as_the_way_back_has_them(compare, tmp_path):
    thick = {
        "data.corruption": "null",
        "preprocessing.normalisation": "zscore",
        "preprocessing.spacing": "[1, 1, 1]",
        "network.noise": "slices",
        "network.noise_channels": 1,
        "network.slice_distance": 2,
    }
    for number in range(4):  # of good images nothing is asked
        save(tmp_path / f"true/p{number}.nii.gz", shape=(12, 16, 20), affine=np.eye(4))
    _, found, refused = compare(thick)
    assert found == refused == set()
    save(tmp_path / "in/p2.nii.gz", affine=np.diag([1.0, 1.5, 5.0, 1.0]))
    _, found, refused = compare(thick)
    assert found == refused and len(found) == 1 and "set it to 5" in str(found)
    _, found, refused = compare(thick | {"training.method": "supervised"})
    assert "slice-distance" not in str(found | refused)
