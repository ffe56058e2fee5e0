"""`clinseg report` tells of a run or of predictions, and never harms what it tells of."""

import json
import os
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from pipeline.tracking import start_record
from pipeline.workflows.reporting import keep_report
from pipeline.workflows.reports.folders import read_folder


def data_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>', text)[1])


@pytest.fixture(scope="module")
def validation(trained):
    return json.loads((trained.run / "split.json").read_text())["validation"]


def test_a_training_ends_with_its_page(trained, validation):
    page = trained.run / "report.html"
    views = data_of(page)["views"]
    assert {view["case"] for view in views} <= set(validation) and views
    assert all(set(view["layers"]) == {"image", "reference", "prediction", "difference"} for view in views)
    assert {label["name"]: label["colour"] for label in views[0]["labels"]}["core"] == "#112233"
    text = page.read_text(encoding="utf-8")
    assert trained.run.name in text and "model_sha256" not in text and str(trained.folder) not in text
    assert list((trained.folder / "mlruns/artifacts").rglob("report.html"))


def test_wanted_cases_are_shown_and_unknown_ones_refused(clinseg, trained, validation, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.folder)
    answer = clinseg("report", "latest", "-o", tmp_path / "a.html", "--cases", validation[-1])
    assert answer.code == 0, answer.err
    assert [view["case"] for view in data_of(tmp_path / "a.html")["views"]] == [validation[-1]]
    answer = clinseg("report", trained.run, "--cases", "phantom", "-o", tmp_path / "b.html")
    assert answer.code == 2 and validation[0] in answer.err and not (tmp_path / "b.html").exists()


@pytest.mark.parametrize("spelled", [".", "validation/.."])
def test_a_run_is_found_from_within_its_folder(clinseg, trained, spelled, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.run)
    answer = clinseg("report", spelled, "-o", tmp_path / "page.html")
    assert answer.code == 0, answer.err
    assert trained.run.name in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_run_is_found_where_runs_is_a_link_to_another_disk(clinseg, trained, tmp_path):
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "big-disk").symlink_to(trained.run.parent)
    (tmp_path / "mlruns/runs").symlink_to(tmp_path / "big-disk")
    folder = tmp_path / "mlruns/runs" / trained.run.name
    answer = clinseg("report", folder, "-o", tmp_path / "page.html")
    assert answer.code == 0, answer.err


def test_a_folder_is_shown_with_what_is_named_beside_it(clinseg, trained, validation, tmp_path):
    study, folder = trained.manifest.parent, tmp_path / "out"
    shutil.copytree(trained.run / "validation", folder)
    assert clinseg("report", folder).code == 0
    assert {layer for view in data_of(folder / "report.html")["views"] for layer in view["layers"]} == {
        "prediction"
    }
    beside = ("--images", study / "imagesTr", "--references", study / "labelsTr")
    assert clinseg("report", folder, *beside).code == 0
    page = folder / "report.html"
    assert "compared with references" in page.read_text() and "Surface Dice" in page.read_text()
    assert "difference" in data_of(page)["views"][0]["layers"]


def test_figures_are_those_of_the_masks_that_are_there(clinseg, trained, validation, tmp_path):
    labels, folder = tmp_path / "labels", tmp_path / "out"
    shutil.copytree(trained.run / "validation", folder)
    labels.mkdir()
    for case in validation:
        shutil.copyfile(trained.manifest.parent / f"labelsTr/{case}.nii.gz", labels / f"{case}.nii.gz")
    assert clinseg("evaluate", folder, labels, "-o", folder / "metrics.csv").code == 0
    assert clinseg("report", folder).code == 0
    assert "compared with references" in (folder / "report.html").read_text()
    for case in validation:  # another model predicts, and perfectly
        shutil.copyfile(labels / f"{case}.nii.gz", folder / f"{case}.nii.gz")
    assert clinseg("report", folder, "--references", labels).code == 0
    assert "Dice</dt><dd><b>1.0000</b>" in (folder / "report.html").read_text()
    os.utime(folder / "metrics.csv", (0, 0))
    assert clinseg("report", folder).code == 0
    text = (folder / "report.html").read_text()
    assert "metrics.csv is older than the predictions" in text and "Surface Dice" not in text


@pytest.mark.parametrize("is_run", [True, False])
def test_references_that_are_none_of_the_predictions_are_refused(
    clinseg, trained, validation, tmp_path, is_run
):
    folder = tmp_path / "out"
    shutil.copytree(trained.run / "validation", folder)
    (tmp_path / "empty").mkdir()
    for name, rule in (("typo", "missing-file"), ("empty", "reference-missing")):
        page = tmp_path / "report.html"
        what = trained.run if is_run else folder
        answer = clinseg("report", what, "--references", tmp_path / name, "-o", page)
        assert answer.code == 3 and rule in answer.err and not page.exists()


def test_a_mask_is_never_shown_over_another_image_or_elsewhere(clinseg, trained, validation, tmp_path):
    folder, images, labels = (tmp_path / name for name in ("out", "images", "labels"))
    shutil.copytree(trained.run / "validation", folder)
    for source, target in (("imagesTr", images), ("labelsTr", labels)):
        target.mkdir()
        stored = nib.load(trained.manifest.parent / source / f"{validation[0]}.nii.gz")
        affine = stored.affine.copy()
        affine[0, 3] += 5
        nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), affine), target / f"{validation[0]}.nii.gz")
    beside = ("--images", images, "--references", labels, "--cases", validation[0])
    assert clinseg("report", folder, *beside).code == 0
    (view,) = data_of(folder / "report.html")["views"]
    assert set(view["layers"]) == {"prediction"}
    text = (folder / "report.html").read_text()
    assert "is not the one that was predicted" in text and "lies on another grid" in text


def test_a_refused_case_and_a_path_are_told_without_where_they_lie(clinseg, trained, validation, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(trained.run / "validation", folder)
    report = json.loads((folder / "report.json").read_text())
    report["cases"][0] |= {"mask": None, "faults": ["/home/Miller_Ann/scan.nii.gz: cut short [truncated]"]}
    (folder / "report.json").write_text(json.dumps(report))
    assert clinseg("report", folder).code == 0
    text = (folder / "report.html").read_text()
    assert "scan.nii.gz: cut short [truncated]" in text and "Miller" not in text and "1 refused" in text


def test_a_place_where_nothing_can_be_written_is_told_before_the_work(
    clinseg, trained, tmp_path, monkeypatch
):
    monkeypatch.chdir(trained.folder)
    (tmp_path / "file").write_text("")
    for command in (["report", trained.run], ["evaluate", "nowhere", "nowhere"], ["compare", "no", "runs"]):
        for place, rule, code in ((tmp_path, "is-folder", 2), (tmp_path / "file/a.csv", "not-writable", 4)):
            answer = clinseg(*command, "-o", place)
            assert answer.code == code and rule in answer.err and "nowhere:" not in answer.err
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_only_explanations_of_the_answers_that_it_tells_are_shown(tmp_path):
    (tmp_path / "explanations").mkdir()
    names = [
        "a_no-ring_occlusion",  # of this answer
        "b_disc_grad_cam",  # of another answer to this case
        "c_disc_grad_cam",  # of another case
        "a_c_no-ring_occlusion",
    ]
    for name in names:
        (tmp_path / f"explanations/{name}.png").write_bytes(b"drawn")
    rows = "case,predicted,probability_disc,probability_no ring,review\na,no ring,0.2,0.8,no\nb,,0.2,0.3,no\n"
    (tmp_path / "predictions.csv").write_text(rows)
    assert [picture.caption for picture in read_folder(tmp_path).pictures] == names[:1]


def test_nothing_to_tell_of_is_refused(clinseg, tmp_path):
    answer = clinseg("report", tmp_path)
    assert answer.code == 2 and "nothing-to-report" in answer.err


def test_a_failure_is_noted_and_the_training_goes_on(tmp_path, monkeypatch):
    record = start_record("x", None, "segmentation", tmp_path)
    (record.folder / "cases.csv").mkdir()
    (record.folder / "report.html").mkdir()
    keep_report(record)
    record.close("FINISHED", 0.0)
    assert "clinseg.report" in record.run.events.read_text()
