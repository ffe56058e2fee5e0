"""What an enhancer is said to come to, where the truth of some images is unknown."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.config import load_job
from pipeline.tracking import RunFolder
from pipeline.training.enhancement import validate_enhancement
from pipeline.workflows.tasks.enhancement_judging import gather_figures
from pipeline.workflows.tasks.enhancement_material import load_enhancement_material

CONFIG = Path(__file__).parents[2] / "configs/smoke/enhancement.yaml"


def add_fold(folder, name, table):
    (folder / name).mkdir()
    (folder / name / "cases.csv").write_text(table)
    return RunFolder(folder / name, "noise", "enhancement", "", 1)


@pytest.mark.parametrize("order", [("known", "unknown"), ("unknown", "known")])
def test_folds_without_a_truth_take_nothing_from_those_with_one(tmp_path, order):
    folds = {
        "known": add_fold(tmp_path, "known", "case,psnr_after,mean_change\na,20,1\nb,30,1\nc,,1\n"),
        "unknown": add_fold(tmp_path, "unknown", "case,mean_change\nd,1\n"),
    }
    figures = gather_figures([folds[name] for name in order])
    assert list(figures) == ["psnr_after"] and figures["psnr_after"].value == 25


def test_validation_is_in_the_unit_of_the_result(tmp_path):
    """Targets are their sources in another unit: what changes no scaled value makes them exactly."""
    values = np.random.default_rng(0).uniform(100, 200, (16, 16, 16)).astype(np.float32)
    for number in range(4):
        for place, unit in ("in", 1), ("true", 10):
            path = tmp_path / place / f"p{number}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(unit * np.roll(values, number), np.eye(4)), path)
    settings = {
        "data.manifest": tmp_path / "in",
        "data.target": tmp_path / "true",
        "data.corruption": "null",
        "data.num_folds": 2,
        "data.cache_dir": tmp_path / "cache",
        "inference.intensities": "target",
    }
    job = load_job(CONFIG, [f"{name}={value}" for name, value in settings.items()])
    material = load_enhancement_material(job)
    told = validate_enhancement(torch.nn.Identity(), job, material.validation, torch.device("cpu"))
    assert told["validation/psnr"] > 30 and told["validation/ssim"] > 0.99
