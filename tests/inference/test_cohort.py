"""A cohort is worked on side by side, told in order, and goes on where it was interrupted."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import asdict, replace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import apply_transform

from pipeline.checkpoint import read_checkpoint
from pipeline.data.cases import Case
from pipeline.errors import Stopped
from pipeline.inference.cohort import CaseReport, predict_cohort
from pipeline.inference.predictor import load_predictor, select_device
from pipeline.inference.relay import Steps, relay
from transforms.preprocessing import Prepared

compile_ = torch.compile


@pytest.fixture
def images(trained, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(trained.manifest.parent / "imagesTr", folder)
    return folder


def report_of(folder):
    return {case["case"]: case for case in json.loads((folder / "report.json").read_text())["cases"]}


@pytest.mark.parametrize("max_memory", [None, 2**40])
def test_reports_come_in_order_and_a_broken_case_costs_only_itself(trained, images, tmp_path, max_memory):
    paths = sorted(images.iterdir())
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    predictor = load_predictor(read_checkpoint(trained.model), select_device("cpu"), max_memory)
    cases = [Case(path.name.split(".")[0], path.name, (path,)) for path in paths]
    told, planned = [], []
    reports = predict_cohort(
        predictor, cases, tmp_path / "out", told.append, lambda case, plan: planned.append(case)
    )
    assert reports == told
    assert [report.case for report in reports] == [case.id for case in cases]
    assert [bool(report.faults) for report in reports] == [False, True, False, False, False]
    assert planned == [case.id for number, case in enumerate(cases) if number != 1]
    assert all((tmp_path / "out" / report.mask).is_file() for report in reports if not report.faults)


def test_an_image_that_no_memory_holds_on_the_networks_grid_costs_only_itself(trained, images, tmp_path):
    checkpoint = read_checkpoint(trained.model)
    job = checkpoint.job | {"preprocessing": checkpoint.job["preprocessing"] | {"spacing": [2.0, 2.0, 2.0]}}
    paths = sorted(images.iterdir())[:3]
    nib.save(nib.Nifti1Image(np.zeros((100, 100, 100), np.uint8), np.diag([99, 99, 99, 1])), paths[1])
    cases = [Case(path.name.split(".")[0], path.name, (path,)) for path in paths]
    predictor = load_predictor(replace(checkpoint, job=job), select_device("cpu"))
    reports = predict_cohort(predictor, cases, tmp_path / "out")
    assert [[fault.rule for fault in report.faults] for report in reports] == [[], ["out-of-memory"], []]
    assert "preparing it takes" in reports[1].faults[0].message


def test_running_out_of_memory_while_reading_costs_only_that_case_and_frees_what_it_held():
    class Voxels:
        pass

    held, told = [], []

    def load(case):
        voxels = Voxels()
        held.append(weakref.ref(voxels))
        return apply_transform(torch.empty, 2**60) if case.id == "b" else voxels

    def make(voxels):
        told.append([reference() is not None for reference in held])
        return voxels

    steps = Steps(
        load=load,
        make=make,
        write=lambda voxels: "written",
        refuse=lambda case, faults: [(fault.where, fault.rule) for fault in faults],
    )
    gc.disable()
    try:
        cases = [Case(name, name, ()) for name in "abc"]
        reports = relay(steps, cases, lambda report: None, is_sequential=True)
    finally:
        gc.enable()
    assert reports == ["written", [("b", "out-of-memory")], "written"]
    assert told == [[True], [False, False, True]]


def test_resume_keeps_what_is_finished_and_nothing_else(clinseg, trained, images, tmp_path):
    out = tmp_path / "out"
    assert clinseg("predict", trained.model, images, "-o", out).code == 0
    masks = sorted(out.glob("*.nii.gz"))
    contents = {mask.name: mask.read_bytes() for mask in masks}
    before = report_of(out)
    masks[0].unlink()
    masks[1].unlink()
    changed = sorted(images.iterdir())[2]
    shutil.copy(sorted(images.iterdir())[3], changed)  # the image is another one now
    kept = {mask: mask.stat().st_mtime_ns for mask in masks[2:]}
    assert clinseg("predict", trained.model, images, "-o", out, "--resume").code == 0
    assert masks[0].read_bytes() == contents[masks[0].name]
    assert masks[1].read_bytes() == contents[masks[1].name]
    assert masks[2].read_bytes() == contents[masks[3].name]
    assert masks[2].stat().st_mtime_ns > kept[masks[2]]
    assert [mask.stat().st_mtime_ns for mask in masks[3:]] == [kept[mask] for mask in masks[3:]]
    after = report_of(out)
    assert list(after) == list(before)
    assert all(after[name] == before[name] for name in list(before)[3:])


def test_a_mask_that_was_drawn_or_corrected_by_hand_is_never_replaced(clinseg, trained, images, tmp_path):
    out, paths = tmp_path / "out", sorted(images.iterdir())
    for path in paths[2:]:
        path.unlink()
    drawn = nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4))
    out.mkdir()
    for path in paths[:2]:
        nib.save(drawn, out / path.name)
    before = {path: path.read_bytes() for path in out.iterdir()}
    answer = clinseg("predict", trained.model, images, "-o", out)
    assert answer.code == 2 and answer.err.count("would-overwrite") == 2
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    for path in before:
        path.unlink()
    assert clinseg("predict", trained.model, images, "-o", out).code == 0
    mask = nib.load(out / paths[0].name)  # its header stays what it was, as of an editor that keeps it
    nib.save(nib.Nifti1Image(np.zeros(mask.shape, np.uint8), None, mask.header), out / paths[0].name)
    corrected = (out / paths[0].name).read_bytes()
    for options in ([], ["--resume"]):
        answer = clinseg("predict", trained.model, images, "-o", out, *options)
        assert answer.code == 2 and answer.err.count("would-overwrite") == 1
        assert (out / paths[0].name).read_bytes() == corrected


def test_what_was_written_before_is_replaced_also_where_nothing_was_told_of_it(
    clinseg, trained, images, tmp_path
):
    path, out = images / "phantom_01.nii.gz", tmp_path / "out"
    for model in (trained.model, trained.run / "checkpoints/last.safetensors"):
        assert clinseg("predict", model, path, "-o", out, "--probabilities").code == 0
    for name in ("audit.jsonl", "report.json"):
        (out / name).unlink()  # as after a kill
    assert clinseg("predict", trained.model, path, "-o", out, "--resume").code == 0


def test_what_was_written_when_a_cohort_is_stopped_is_told(trained, images, tmp_path):
    predictor = load_predictor(read_checkpoint(trained.model), select_device("cpu"))
    cases = [Case(path.name.split(".")[0], path.name, (path,)) for path in sorted(images.iterdir())]
    told = []

    def stop(case, plan):
        if case == cases[2].id:
            raise Stopped

    with pytest.raises(Stopped):
        predict_cohort(predictor, cases, tmp_path / "out", told.append, stop)
    assert [report.mask for report in told] == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_under_a_budget_one_case_at_a_time_is_in_memory(trained, images, tmp_path):
    predictor = load_predictor(read_checkpoint(trained.model), select_device("cpu"), 2**40)
    cases = [Case(path.name.split(".")[0], path.name, (path,)) for path in sorted(images.iterdir())]
    alive = []

    def count(case, plan):
        gc.collect()
        alive.append(sum(type(thing) is Prepared for thing in gc.get_objects()))

    predict_cohort(predictor, cases, tmp_path / "out", on_plan=count)
    assert alive == [1] * len(cases)


def test_compiled_the_masks_are_the_same(clinseg, trained, images, tmp_path, monkeypatch):
    # All of torch.compile but the C++, which takes a minute.
    asked = []
    monkeypatch.setattr(
        torch, "compile", lambda call, **how: asked.append(how) or compile_(call, backend="aot_eager", **how)
    )
    for path in sorted(images.iterdir())[1:]:
        path.unlink()
    masks = []
    for name, options in (("plain", []), ("compiled", ["--compile"])):
        assert clinseg("predict", trained.model, images, "-o", tmp_path / name, *options).code == 0
        masks.append(np.asarray(nib.load(next((tmp_path / name).glob("*.nii.gz"))).dataobj))
    assert len(asked) == 1
    assert np.count_nonzero(masks[0] != masks[1]) <= 1e-4 * masks[0].size and masks[0].any()


def test_what_cannot_be_compiled_is_refused_before_any_case(clinseg, trained, images, tmp_path, monkeypatch):
    def fail(graph, inputs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda call, **how: compile_(call, backend=fail, **how))
    answer = clinseg("predict", trained.model, images, "-o", tmp_path / "out", "--compile")
    assert answer.code == 2 and answer.err.count("no compiler here") == 1 and "leave it out" in answer.err
    assert not (tmp_path / "out").exists()


def test_resume_makes_the_probabilities_that_are_missing(clinseg, trained, images, tmp_path):
    for path in sorted(images.iterdir())[2:]:
        path.unlink()
    out = tmp_path / "out"
    assert clinseg("predict", trained.model, images, "-o", out).code == 0
    assert clinseg("predict", trained.model, images, "-o", out, "--resume", "--probabilities").code == 0
    assert len(list((out / "probabilities").iterdir())) == 2


def test_probabilities_are_those_of_the_mask_beside_them(clinseg, trained, images, tmp_path):
    path, out, last = (
        images / "phantom_01.nii.gz",
        tmp_path / "out",
        trained.run / "checkpoints/last.safetensors",
    )
    probabilities = out / "probabilities/phantom_01.nii"
    assert clinseg("predict", trained.model, path, "-o", out, "--probabilities").code == 0
    assert clinseg("predict", last, path, "-o", out).code == 0
    assert not probabilities.exists()
    assert clinseg("predict", last, path, "-o", out, "--resume", "--probabilities").code == 0
    assert clinseg("predict", last, path, "-o", tmp_path / "anew", "--probabilities").code == 0
    assert probabilities.read_bytes() == (tmp_path / "anew/probabilities/phantom_01.nii").read_bytes()


def test_resume_with_another_model_begins_anew(clinseg, trained, images, tmp_path):
    out, last = tmp_path / "out", trained.run / "checkpoints/last.safetensors"
    assert clinseg("predict", trained.model, images, "-o", out).code == 0
    before = {mask: mask.stat().st_mtime_ns for mask in out.glob("*.nii.gz")}
    assert clinseg("predict", last, images, "-o", out, "--resume").code == 0
    assert json.loads((out / "report.json").read_text())["model_sha256"] == read_checkpoint(last).content_hash
    assert before and all(mask.stat().st_mtime_ns > written for mask, written in before.items())


@pytest.mark.parametrize(
    "entry", [{}, {"mask": 1}, {"mask_hash": ["a"]}, {"exports": "dicom-seg"}, {"input_hashes": None}]
)
def test_a_report_that_is_none_is_refused(clinseg, trained, images, tmp_path, entry):
    case = {**asdict(CaseReport("phantom_00", "phantom_00.nii.gz")), "status": "predicted", **entry}
    known = {"model_sha256": read_checkpoint(trained.model).content_hash, "cases": [case]}
    (tmp_path / "report.json").write_text(json.dumps(known if entry else entry))
    answer = clinseg("predict", trained.model, images, "-o", tmp_path, "--resume")
    assert answer.code == 2
    assert "nothing can be resumed" in answer.err


def test_a_stopped_prediction_goes_on_where_it_was(clinseg, trained, images, tmp_path):
    for number in range(12):
        shutil.copy(images / "phantom_01.nii.gz", images / f"copy_{number:02d}.nii.gz")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pipeline", "predict", str(trained.model), str(images), "-o", str(out)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (out / "report.json").is_file():
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGTERM)
    assert "Traceback" not in running.communicate()[1]
    assert running.returncode == 75
    finished = report_of(out)
    assert 0 < len(finished) < 17
    assert clinseg("predict", trained.model, images, "-o", out, "--resume").code == 0
    whole = report_of(out)
    assert len(whole) == 17
    assert all(whole[name] == case for name, case in finished.items())


def test_the_plan_is_shown_and_a_budget_changes_no_voxel(clinseg, trained, images, tmp_path):
    path = images / "phantom_01.nii.gz"
    answer = clinseg("predict", trained.model, path, "-o", tmp_path / "free", "-v")
    assert answer.code == 0
    assert "phantom_01: " in answer.err and "windows along axis" in answer.err
    answer = clinseg("predict", trained.model, path, "-o", tmp_path / "kept", "--max-memory", "4GiB", "-v")
    assert answer.code == 0 and "peak" in answer.err
    free, kept = ((tmp_path / name / "phantom_01.nii.gz").read_bytes() for name in ("free", "kept"))
    assert free == kept
    answer = clinseg("predict", trained.model, path, "-o", tmp_path / "none", "--max-memory", "50MiB")
    assert answer.code == 3
    assert "it cannot be prepared within 50 MiB: that takes" in answer.err and "allow more" in answer.err
    assert clinseg("predict", trained.model, path, "-o", tmp_path, "--max-memory", "lots").code == 2


def test_volumes_are_those_of_the_mask(clinseg, trained, images, tmp_path):
    assert clinseg("predict", trained.model, images / "phantom_01.nii.gz", "-o", tmp_path).code == 0
    mask = nib.load(tmp_path / "phantom_01.nii.gz")
    voxel_ml = abs(np.linalg.det(mask.affine[:3, :3])) / 1000
    content = json.loads((tmp_path / "report.json").read_text())
    counts = {
        name: np.isin(np.asarray(mask.dataobj), values).sum() * voxel_ml
        for name, values in content["structures"].items()
    }
    assert content["cases"][0]["volumes_ml"] == pytest.approx(counts, abs=1e-6)
