"""`clinseg enhance`: images in the form of their inputs, what was changed in them, and an honest report."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.checkpoint import Checkpoint, Member, read_checkpoint, write_checkpoint
from pipeline.config import EnhancementJob, job_to_mapping
from pipeline.data.images import read_image
from pipeline.errors import InputError
from pipeline.image_metrics import psnr, ssim
from pipeline.inference.image_evaluation import compare_images
from pipeline.networks import build_generator
from pipeline.tracking import start_record
from pipeline.volume import Grid, Volume
from pipeline.workflows.cards import describe

SHAPE = (14, 12, 10)
AFFINE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0, 0.2) * [-1.0, 1.2, 2.0], (30, -20, 5))


def make_checkpoint(*, channels=("T1",), num_members=1, change=0.3, way_back=True, inference=None, **network):
    job = EnhancementJob.model_validate(
        {
            "task": "enhancement",
            "data": {"manifest": "a", "target": "b"},
            "network": {"features": (4, 8), "num_blocks": 1, "discriminator_levels": 1, **network},
            "training": {"epochs": 1, "patch_size": (8, 8, 8)},
            "inference": inference or {},
        }
    )
    members = []
    for seed in range(num_members):
        torch.manual_seed(seed)
        weights = {}
        for way in ("forward", "backward") if way_back else ("forward",):
            noise = job.network.noise_channels if way == "backward" else 0
            generator = build_generator(job.network, len(channels), noise)
            torch.nn.init.normal_(generator.body.head.weight, std=change)  # else it begins as the identity
            weights |= {f"{way}.{name}": weight for name, weight in generator.state_dict().items()}
        statistics = [
            {"low": 0.0, "high": 1.0, "mean": 10.0 * n + 10, "deviation": 2.0}
            for n in range(2 * len(channels))
        ]
        members.append(Member(weights, {"channels": statistics}, {"run": "a"}))
    alone = members[0] if num_members == 1 else Member({}, None, {})
    return Checkpoint(
        alone.weights,
        job_to_mapping(job),
        labels={},
        structures={},
        channels=channels,
        intensity=alone.intensity,
        provenance={"run": "a"},
        members=tuple(members) if num_members > 1 else (),
    )


@pytest.fixture
def model(tmp_path):
    def write(**how):
        path = tmp_path / "model.safetensors"
        write_checkpoint(path, make_checkpoint(**how))
        return path

    return write


def write_image(path, dtype=np.int16, shape=SHAPE, seed=0, slope=None):
    path.parent.mkdir(exist_ok=True)
    values = 100 + 12 * np.random.default_rng(seed).normal(size=shape) + 4 * np.indices(shape)[0]
    image = nib.Nifti1Image(values.astype(dtype), AFFINE)
    image.header.set_sform(AFFINE, 2)
    image.header.set_qform(AFFINE, 1)
    if slope is not None:
        image.header.set_slope_inter(*slope)
    nib.save(image, path)
    return path


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize(
    ("dtype", "slope", "written"),
    [
        (np.int16, None, np.int16),
        (np.uint8, None, np.uint8),
        (np.float32, None, np.float32),
        (np.float64, None, np.float32),
        (np.int16, (0.25, -10.0), np.float32),
    ],
)
def test_an_image_comes_back_in_its_own_form_beside_what_was_changed(
    clinseg, model, tmp_path, dtype, slope, written
):
    path = write_image(tmp_path / "in/case.nii.gz", dtype, slope=slope)
    out = tmp_path / "out"
    assert clinseg("enhance", model(), path, "-o", out, "--device", "cpu").code == 0
    before, after, change = (nib.load(p) for p in (path, out / "case.nii.gz", out / "changes/case.nii.gz"))
    for made in after, change:
        assert np.array_equal(made.affine, before.affine)
        assert made.header["sform_code"] == 2 and made.header["qform_code"] == 1
        assert np.array_equal(made.header["pixdim"][:4], before.header["pixdim"][:4])
    assert after.get_data_dtype() == written and change.get_data_dtype() == np.float32
    assert after.header.get_slope_inter() == (None, None)
    meant = read_image(path)[0].array.astype(np.float64)  # stored values scaled, in single precision
    difference = voxels(out / "case.nii.gz").astype(np.float64) - meant
    assert np.array_equal(voxels(out / "changes/case.nii.gz"), difference.astype(np.float32))
    assert 0 < np.abs(difference).mean() < 20
    assert not (out / "uncertainty").exists()
    (case,) = report_of(out)["cases"]
    assert case["status"] == "enhanced" and set(case["files"]) == {"case.nii.gz", "changes/case.nii.gz"}
    assert case["mean_change"] == pytest.approx(np.abs(difference).mean(), rel=1e-5)
    assert case["largest_change"] == pytest.approx(np.abs(difference).max(), rel=1e-5)


def test_what_does_not_fit_into_the_stored_type_is_clipped_and_counted(clinseg, model, tmp_path):
    path = write_image(tmp_path / "in/case.nii.gz", np.uint8)
    bright = voxels(path).copy()
    bright[7:] = 255
    nib.save(nib.Nifti1Image(bright, AFFINE), path)
    assert clinseg("enhance", model(change=3.0), path, "-o", tmp_path / "out").code == 0
    (case,) = report_of(tmp_path / "out")["cases"]
    after = voxels(tmp_path / "out/case.nii.gz")
    limits = np.count_nonzero((after == 0) | (after == 255))
    assert 0 < case["num_clipped"] <= limits


def test_several_channels_and_an_ensemble_read_back_as_an_input(clinseg, model, tmp_path):
    inputs = tmp_path / "in"
    for index in range(2):
        write_image(inputs / f"case_{index:04d}.nii.gz", seed=index)
    path, out = model(channels=("T1", "T2"), num_members=2), tmp_path / "out"
    assert clinseg("enhance", path, inputs, "-o", out).code == 0
    names = ["case_0000.nii.gz", "case_0001.nii.gz"]
    for place in out, out / "changes", out / "uncertainty":
        assert sorted(p.name for p in place.glob("*.nii.gz")) == names
    assert all(voxels(out / "uncertainty" / name).mean() > 0 for name in names)
    assert clinseg("enhance", path, out, "-o", tmp_path / "again").code == 0


def test_nothing_of_an_earlier_enhancement_stays_beside_a_new_one_or_of_a_refused_case(
    clinseg, model, tmp_path
):
    path, out = write_image(tmp_path / "in/case.nii.gz"), tmp_path / "out"
    assert clinseg("enhance", model(num_members=2), path, "-o", out).code == 0
    assert (out / "uncertainty/case.nii.gz").is_file()
    assert clinseg("enhance", model(), path, "-o", out).code == 0
    assert {p.relative_to(out) for p in out.rglob("*.nii.gz")} == {
        Path("case.nii.gz"),
        Path("changes/case.nii.gz"),
    }
    path.write_bytes(path.read_bytes()[:200])
    assert clinseg("enhance", model(), path, "-o", out).code == 3
    assert not list(out.rglob("*.nii.gz")) and path.is_file()


def test_backwards_the_same_case_gets_the_same_noise_and_the_other_weights(clinseg, model, tmp_path):
    path = write_image(tmp_path / "in/case.nii.gz", np.float32)
    made = model(noise_channels=2, inference={"intensities": "target"})
    for name in "one", "two":
        assert clinseg("enhance", made, path, "-o", tmp_path / name, "--reverse").code == 0
    assert clinseg("enhance", made, path, "-o", tmp_path / "forth").code == 0
    one, two, forth = (voxels(tmp_path / name / "case.nii.gz") for name in ("one", "two", "forth"))
    assert np.array_equal(one, two)
    # Source statistics have mean 10, those of the target 20.
    assert abs(one.mean() - 10) < 5 < abs(one.mean() - 20) and abs(forth.mean() - 20) < 5
    shutil.copy(path, tmp_path / "in/other.nii.gz")
    assert clinseg("enhance", made, tmp_path / "in/other.nii.gz", "-o", tmp_path, "--reverse").code == 0
    assert not np.array_equal(voxels(tmp_path / "other.nii.gz"), one)


# The truth.


def test_psnr_and_ssim_are_told_before_and_after(clinseg, model, tmp_path):
    for seed, name in enumerate("abc"):
        write_image(tmp_path / f"in/{name}.nii.gz", seed=seed)
        write_image(tmp_path / f"true/{name}.nii.gz", seed=seed + 5)
    out = tmp_path / "out"
    answer = clinseg("enhance", model(), tmp_path / "in", "-o", out, "--truth", tmp_path / "true")
    assert answer.code == 0 and "psnr_after" in answer.out
    content = report_of(out)
    for case in content["cases"]:
        name = f"{case['case']}.nii.gz"
        true, before, after = (voxels(folder / name) for folder in (tmp_path / "true", tmp_path / "in", out))
        peak = float(np.ptp(true.astype(float)))
        for moment, image in ("before", before), ("after", after):
            assert case["figures"][f"psnr_{moment}"] == pytest.approx(psnr(image, true, peak))
            assert case["figures"][f"ssim_{moment}"] == pytest.approx(ssim(image, true, peak))
    mean = np.mean([case["figures"]["psnr_after"] for case in content["cases"]])
    assert content["figures"]["psnr_after"]["mean"] == pytest.approx(mean)
    assert content["figures"]["psnr_after"]["low"] < mean < content["figures"]["psnr_after"]["high"]


def test_a_case_without_its_truth_is_enhanced_and_named(clinseg, model, tmp_path):
    for name in "abc":
        write_image(tmp_path / f"in/{name}.nii.gz")
    write_image(tmp_path / "true/a.nii.gz")
    nib.save(nib.Nifti1Image(np.full(SHAPE, 7, np.int16), AFFINE), tmp_path / "true/b.nii.gz")
    out = tmp_path / "out"
    answer = clinseg("enhance", model(), tmp_path / "in", "-o", out, "--truth", tmp_path / "true")
    assert answer.code == 3
    assert "c: " in answer.err and "truth-missing" in answer.err
    assert "b: " in answer.err and "truth-constant" in answer.err
    assert len(list(out.glob("*.nii.gz"))) == 3
    assert [case["status"] for case in report_of(out)["cases"]] == ["enhanced"] * 3
    # Of an image that is its own truth nothing is to be told in dB.
    assert report_of(out)["cases"][0]["figures"]["psnr_before"] is None
    assert clinseg("enhance", model(), tmp_path / "in", "-o", out, "--truth", tmp_path / "none").code == 3
    # A single one needs no name.
    one = clinseg(
        "enhance", model(), tmp_path / "in/c.nii.gz", "-o", out, "--truth", tmp_path / "true/a.nii.gz"
    )
    assert one.code == 0


def test_no_truth_is_replaced(clinseg, model, tmp_path):
    """It is read after the images are written, and would then be the image that it judges."""
    for name in "ab":
        write_image(tmp_path / f"in/{name}.nii.gz")
        write_image(tmp_path / f"true/{name}.nii.gz", seed=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    command = ["enhance", model(), tmp_path / "in", "-o", tmp_path / "true", "--truth"]
    answer = clinseg(*command, tmp_path / "true")
    assert answer.code == 2 and answer.err.count("would-overwrite") == 2
    assert f"its truth {tmp_path / 'true/a.nii.gz'}" in answer.err
    command[2] = tmp_path / "in/a.nii.gz"
    answer = clinseg(*command, tmp_path / "true/a.nii.gz")
    assert answer.code == 2 and "would-overwrite" in answer.err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}


def test_the_truth_is_compared_on_its_own_grid_where_the_images_reach():
    """A ramp is exact under linear resampling, beyond the outermost voxels it is not."""
    coarse, fine = np.diag([1.0, 1, 3, 1]), np.diag([1.0, 1, 1, 1])
    fine[2, 3] = -1.0

    def ramp(shape, affine):
        values = (affine[2, 2] * np.arange(shape[2]) + affine[2, 3]) * np.ones(shape)
        return Volume(values.astype(np.float32), Grid(shape, affine))

    truth, image = ramp((6, 6, 24), fine), ramp((6, 6, 8), coarse)
    figures = compare_images("a", [truth], {"after": [image]})
    assert figures["psnr_after"] > 120 and figures["ssim_after"] == pytest.approx(1)
    turned = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3), (0, 0, 0))
    far = np.eye(4)
    far[0, 3] = 100
    for affine, message in ((turned, "turned"), (far, "elsewhere")):
        with pytest.raises(InputError, match=message):
            compare_images("a", [Volume(truth.array, Grid(truth.grid.shape, affine))], {"after": [image]})


# Going on, and what is refused.


def test_resume_keeps_what_is_finished_and_was_made_in_the_same_way(clinseg, model, tmp_path):
    for seed, name in enumerate("abc"):
        write_image(tmp_path / f"in/{name}.nii.gz", seed=seed)
    out, path = tmp_path / "out", model()
    command = ["enhance", path, tmp_path / "in", "-o", out]
    assert clinseg(*command).code == 0
    images = sorted(out.glob("*.nii.gz"))
    (out / "changes/a.nii.gz").unlink()
    write_image(tmp_path / "in/b.nii.gz", seed=9)
    before = [image.stat().st_mtime_ns for image in images]
    assert clinseg(*command, "--resume").code == 0
    after = [image.stat().st_mtime_ns for image in images]
    assert [new > old for new, old in zip(after, before, strict=True)] == [True, True, False]
    assert clinseg(*command, "--resume", "--truth", tmp_path / "in").code == 0
    assert all(case["figures"] for case in report_of(out)["cases"])
    compared = [image.stat().st_mtime_ns for image in images]
    assert clinseg(*command, "--resume", "--truth", tmp_path / "in").code == 0
    assert compared == [image.stat().st_mtime_ns for image in images]
    assert clinseg(*command, "--resume", "--truth", tmp_path / "in", "--reverse").code == 0
    assert all(image.stat().st_mtime_ns > old for image, old in zip(images, compared, strict=True))


@pytest.mark.parametrize(
    ("damage", "code"),
    [({"files": ["x"]}, 2), ({"figures": "x"}, 2), ({"truth_hashes": 3}, 2), ({"files": None}, 0)],
)
def test_a_damaged_report_is_refused_and_a_case_without_files_made_again(
    clinseg, model, tmp_path, damage, code
):
    command = ["enhance", model(), write_image(tmp_path / "in/a.nii.gz"), "-o", tmp_path / "out"]
    assert clinseg(*command).code == 0
    content = report_of(tmp_path / "out")
    content["cases"][0] |= damage
    (tmp_path / "out/report.json").write_text(json.dumps(content))
    answer = clinseg(*command, "--resume")
    assert answer.code == code
    assert "report-unreadable" in answer.err if code else report_of(tmp_path / "out")["cases"][0]["files"]


def test_a_case_that_gives_no_numbers_fails_by_its_name_and_harms_no_other(clinseg, model, tmp_path):
    write_image(tmp_path / "in/fine.nii.gz")
    huge = voxels(tmp_path / "in/fine.nii.gz").astype(np.float32)
    huge[3, 3, 3] = 3e38
    huge[4, 4, 4] = -3e38
    nib.save(nib.Nifti1Image(huge, AFFINE), tmp_path / "in/huge.nii.gz")
    nib.save(nib.Nifti1Image(np.full(SHAPE, 7, np.int16), AFFINE), tmp_path / "in/level.nii.gz")
    checkpoint = read_checkpoint(model())
    for name, weight in checkpoint.weights.items():
        if name.endswith("head.weight"):
            weight.mul_(1e30)  # what is not scaled by it stays a number
    write_checkpoint(tmp_path / "model.safetensors", checkpoint)
    answer = clinseg("enhance", tmp_path / "model.safetensors", tmp_path / "in", "-o", tmp_path / "out")
    assert answer.code == 3
    assert "error: huge: " in answer.err and "[values-too-large]" in answer.err
    assert "damaged" not in answer.err
    assert "warning: level: every voxel" in answer.err
    assert not (tmp_path / "out/huge.nii.gz").exists() and (tmp_path / "out/fine.nii.gz").exists()
    assert [c["status"] for c in report_of(tmp_path / "out")["cases"]] == ["enhanced", "refused", "enhanced"]


def test_a_card_without_figures_says_why(quick_databases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = make_checkpoint()
    assert "Nothing was held out" in describe(checkpoint)
    held_out = replace(checkpoint, provenance={"run": "a", "validation_cases": ["p0", "p1"]})
    told = describe(held_out)
    assert "record is not on this disk" in told and "Nothing was held out" not in told
    record = start_record("a", None, "enhancement")
    record.close("FINISHED", 0.0)
    told = describe(replace(held_out, provenance={**held_out.provenance, "run": record.name}))
    assert "no truth of them is known" in told and "not on this disk" not in told
    record = start_record("b", None, "enhancement")
    record.log_metrics(
        {"best/psnr_after": 30.0, "best_low/psnr_after": 29.0, "best_high/psnr_after": 31.0}, 1
    )
    record.close("FINISHED", 0.0)
    (record.folder / "cases.csv").write_text("case,psnr_after,remark\np0,30,\np1,,no truth\n")
    told = describe(replace(held_out, provenance={**held_out.provenance, "run": record.name}))
    assert "| psnr_after | 30 | 29 to 31 | 1 |" in told


@pytest.mark.parametrize("num_members", [1, 2])
def test_a_card_says_that_patients_are_kept_apart_only_if_they_are_known(num_members):
    checkpoint = make_checkpoint(num_members=num_members)
    apart, unknown = "no patient is on both sides", "one person may be on both sides"
    for note, said, not_said in (
        ({"names_patients": True}, (apart,), (unknown,)),
        ({"names_patients": False}, (unknown,), (apart,)),
        ({}, (), (apart, unknown)),
    ):
        members = tuple(replace(member, provenance=note) for member in checkpoint.members)
        own = checkpoint.provenance | ({} if members else note)
        told = describe(replace(checkpoint, provenance=own, members=members))
        assert all(text in told for text in said) and not any(text in told for text in not_said)


def test_all_that_is_wrong_with_the_arguments_is_told_at_once(clinseg, tmp_path):
    (tmp_path / "out").write_text("a file")
    answer = clinseg(
        *("enhance", tmp_path / "no-model.safetensors", tmp_path / "no-image.nii.gz", "-o", tmp_path / "out"),
        *("--truth", tmp_path / "no-truth", "--max-memory", "lots", "--device", "gpu"),
    )
    assert answer.code == 2
    for told in "no-model", "no-image", "no-truth", "not-a-size", "unknown-device", "not-writable":
        assert told in answer.err


def test_a_model_of_the_wrong_kind_says_what_to_use_instead(clinseg, model, tmp_path):
    image, other = write_image(tmp_path / "in/case.nii.gz"), tmp_path / "other.safetensors"
    labels, structures = {"background": 0, "organ": 1}, {"organ": (1,)}
    segmenter = replace(make_checkpoint(), job={"task": "segmentation"}, labels=labels, structures=structures)
    write_checkpoint(other, segmenter)
    answer = clinseg("enhance", other, image, "-o", tmp_path / "out")
    assert answer.code == 2 and "clinseg predict" in answer.err
    answer = clinseg("predict", model(), image, "-o", tmp_path / "out")
    assert answer.code == 2 and "clinseg enhance" in answer.err
    answer = clinseg("enhance", model(way_back=False), image, "-o", tmp_path / "out", "--reverse")
    assert answer.code == 2 and "one way only" in answer.err
    answer = clinseg("enhance", model(), image, "-o", image.parent)
    assert answer.code == 2 and "would-overwrite" in answer.err
    assert not (tmp_path / "out").exists()


def test_a_super_resolution_grid_reads_back_where_its_image_was(clinseg, model, tmp_path):
    path = write_image(tmp_path / "in/case.nii.gz")
    checkpoint = make_checkpoint(change=0.0, inference={"grid": "network"})
    checkpoint.job["preprocessing"]["spacing"] = (1.0, 1.0, 1.0)
    write_checkpoint(tmp_path / "model.safetensors", checkpoint)
    assert clinseg("enhance", tmp_path / "model.safetensors", path, "-o", tmp_path / "out").code == 0
    (image,), (fine,) = read_image(path), read_image(tmp_path / "out/case.nii.gz")
    assert fine.grid.spacing == pytest.approx((1, 1, 1)) and fine.grid.orientation == image.grid.orientation
    assert fine.array.dtype == image.array.dtype
    # Nothing was changed but the grid: no voxel differs from the resampled image by more than rounding.
    assert np.abs(voxels(tmp_path / "out/changes/case.nii.gz")).max() <= 0.51
