"""From noisy images of some patients and clean ones of others to enhanced images, as a user does it."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

CONFIG = Path(__file__).parents[1] / "configs/smoke/enhancement.yaml"
FINER = Path(__file__).parents[1] / "configs/smoke/super_resolution.yaml"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    place = np.indices((18, 18, 18))
    for number in range(10):
        values = 300 + 100 * np.sin(place[0] / 3 + number) + 20 * place[2]
        nib.save(
            nib.Nifti1Image(values.astype(np.int16), np.diag([1, 1.5, 2, 1])), folder / f"p{number}.nii.gz"
        )
    return folder


def read_figures(run):
    with (run / "cases.csv").open() as file:
        return {row["case"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("method", [pytest.param("cyclegan", marks=pytest.mark.slow), "supervised"])
def test_what_a_run_says_of_its_validation_is_what_enhance_says(
    clinseg, images, tmp_path, monkeypatch, method
):
    monkeypatch.chdir(tmp_path)
    answer = clinseg(
        "train", CONFIG, "--set", f"data.manifest={images}", "--set", f"training.method={method}"
    )
    assert answer.code == 0, answer.err
    assert "clinseg enhance" in answer.out and "psnr_after" in answer.out
    (run,) = Path("mlruns/runs").iterdir()
    told = read_figures(run)
    split = json.loads((run / "split.json").read_text())
    assert set(told) == set(split["validation"]) and not set(told) & set(split["training"])
    assert {path.name for path in (run / "samples").iterdir()} == {"epoch-00001.png", "epoch-00002.png"}
    assert (run / "overlays/enhanced.png").is_file()
    page = (run / "report.html").read_text()
    assert "PSNR before" in page and "Cases from worst to best SSIM" in page

    answer = clinseg("enhance", "latest", run / "validation/inputs", "-o", "out", "--truth", images)
    assert answer.code == 0, answer.err
    for entry in json.loads(Path("out/report.json").read_text())["cases"]:
        for name, value in entry["figures"].items():
            assert float(told[entry["case"]][name]) == pytest.approx(value, rel=1e-5)
        made = nib.load(f"out/{entry['case']}.nii.gz")
        assert np.array_equal(made.affine, nib.load(images / f"{entry['case']}.nii.gz").affine)
    answer = clinseg("enhance", "latest", images, "-o", "back", "--reverse")
    assert answer.code == (0 if method == "cyclegan" else 2), answer.err


def test_a_cross_validation_joins_its_folds(clinseg, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["data.num_folds=2", "training.epochs=1", "training.steps_per_epoch=1", "tracking.overlays=0"]
    arguments = [part for setting in (f"data.manifest={images}", *settings) for part in ("--set", setting)]
    answer = clinseg("train", CONFIG, "--fold", "all", *arguments)
    assert answer.code == 0, answer.err
    answer = clinseg("enhance", "latest", images / "p0.nii.gz", "-o", "out")
    assert answer.code == 0, answer.err
    assert Path("out/uncertainty/p0.nii.gz").is_file()


@pytest.mark.slow
def test_truths_that_cannot_judge_leave_a_training_its_other_cases(clinseg, images, tmp_path, monkeypatch):
    """They are told of at its end, when the model is there, and keep nothing from being judged."""
    monkeypatch.chdir(tmp_path)
    rows = [f"p{number},{images}/p{number}.nii.gz,{number // 3}\n" for number in range(6)]
    Path("sources.csv").write_text("case,image,fold\n" + "".join(rows))
    fine = nib.load(images / "p0.nii.gz")
    level, turned = np.full(fine.shape, 7, np.int16), nib.eulerangles.euler2mat(0.2)
    nib.save(nib.Nifti1Image(level, fine.affine), "level.nii.gz")
    nib.save(
        nib.Nifti1Image(fine.get_fdata(), nib.affines.from_matvec(turned) @ fine.affine), "turned.nii.gz"
    )
    truths = {"p0": images / "p9.nii.gz", "p1": "level.nii.gz", "p2": "turned.nii.gz"}
    truths |= {f"q{number}": images / f"p{number}.nii.gz" for number in range(6, 9)}
    rows = [f"{case},{path},{int(case > 'q')}\n" for case, path in truths.items()]
    Path("targets.csv").write_text("case,image,fold\n" + "".join(rows))
    settings = {
        "data.manifest": "sources.csv",
        "data.target": "targets.csv",
        "data.corruption": "null",
        "training.epochs": 1,
        "training.steps_per_epoch": 1,
    }
    answer = clinseg("train", CONFIG, *(f"--set={name}={value}" for name, value in settings.items()))
    assert answer.code == 0, answer.err
    assert "warning: p1: all of the truth's voxels" in answer.err and "truth-constant" in answer.err
    assert "warning: p2: the truth's axes are turned" in answer.err
    (run,) = Path("mlruns/runs").iterdir()
    told = read_figures(run)
    assert [case for case in told if told[case]["psnr_after"]] == ["p0"]
    assert [case for case in told if told[case]["remark"]] == ["p1", "p2"]
    assert "axes are turned" in (run / "report.html").read_text()


@pytest.mark.slow
def test_thick_slices_become_thin_where_they_were(clinseg, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = clinseg("train", FINER, "--set", f"data.manifest={images}")
    assert answer.code == 0 and "psnr_after" in answer.out, answer.err
    (run,) = Path("mlruns/runs").iterdir()
    case = json.loads((run / "split.json").read_text())["validation"][0]
    thick, thin = (
        nib.load(run / "validation" / place / f"{case}.nii.gz") for place in ("inputs", "enhanced")
    )
    assert thick.shape == (18, 18, 6) and np.allclose(thick.header.get_zooms(), (1, 1.5, 6))
    assert np.allclose(thin.header.get_zooms(), 1) and thin.get_data_dtype() == np.float32
    centres = [image.affine @ [0, 0, 0, 1] for image in (thick, thin)]
    assert np.allclose(*centres)
    reach = [image.affine @ [*np.subtract(image.shape, 1), 1] for image in (thick, thin)]
    assert np.abs(reach[0] - reach[1]).max() < 1


@pytest.mark.slow
def test_a_run_tells_whether_what_it_makes_is_measured_as_the_truth_is(
    clinseg, trained, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    settings = {
        "data.manifest": trained.manifest,
        "data.corruption.name": "blur",
        "preprocessing.normalisation": "zscore",
        "training.method": "supervised",
        "inference.downstream": trained.model,
    }
    answer = clinseg("train", CONFIG, *(f"--set={name}={value}" for name, value in settings.items()))
    assert answer.code == 0 and "downstream_dice_after" in answer.out, answer.err
    (run,) = Path("mlruns/runs").iterdir()
    told = json.loads((run / "validation/enhanced/downstream.json").read_text())["told"]
    page = (run / "report.html").read_text()
    assert "What a segmentation finds in enhanced images: " in page and "Dice in originals" in page
    assert told.split(" (")[0] in page
    settings["inference.downstream"] = run / "checkpoints/best.safetensors"
    answer = clinseg("train", CONFIG, *(f"--set={name}={value}" for name, value in settings.items()))
    assert answer.code == 2 and "no segmentation model" in answer.err
