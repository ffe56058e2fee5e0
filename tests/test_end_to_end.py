"""From images to masks as a user does it, with geometry that survives every way of storing an image."""

import csv
import json
import shlex
import shutil
import sqlite3
import subprocess
import sys

import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from pipeline.data.cases import Case
from pipeline.data.images import read_label_map
from pipeline.data.synthetic.series import write_series
from pipeline.export.signature import read_label_names
from pipeline.files import sha256_of
from pipeline.terminology import PALETTE, UNKNOWN
from pipeline.volume import Grid, Volume
from pipeline.workflows.applying.refusing import refuse_without_series


@pytest.fixture
def image(trained):
    """A phantom as whole numbers, so that every form can store it exactly."""
    stored = nib.load(next(iter(sorted((trained.manifest.parent / "imagesTr").glob("*.nii.gz")))))
    return np.rint(np.asarray(stored.dataobj) * 10).astype(np.int16), stored.affine


def predict(clinseg, trained, path, folder):
    answer = clinseg("predict", trained.model, path, "-o", folder)
    assert answer.code == 0, answer.err
    (mask,) = folder.glob("*.nii.gz")
    return nib.load(mask)


def as_volume(array, affine):
    return Volume(array, Grid(array.shape, affine))


def in_patient_space(mask):
    """Voxels and affine in RAS order."""
    canonical = nib.as_closest_canonical(mask)
    return np.asarray(canonical.dataobj), canonical.affine


@pytest.fixture
def expected(clinseg, trained, image, tmp_path):
    nib.save(nib.Nifti1Image(*image), tmp_path / "plain.nii.gz")
    mask = predict(clinseg, trained, tmp_path / "plain.nii.gz", tmp_path / "plain")
    assert len(np.unique(np.asarray(mask.dataobj))) == 3, "a mask without structures would prove nothing"
    return in_patient_space(mask)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_orientation_as_stored_does_not_move_the_mask(clinseg, trained, image, expected, tmp_path, codes):
    stored = nib.Nifti1Image(*image)
    turned = stored.as_reoriented(ornt_transform(io_orientation(stored.affine), axcodes2ornt(codes)))
    nib.save(turned, tmp_path / "turned.nii.gz")
    mask = predict(clinseg, trained, tmp_path / "turned.nii.gz", tmp_path / "out")
    assert mask.shape == turned.shape and np.array_equal(mask.affine, turned.affine)
    voxels, affine = in_patient_space(mask)
    assert np.array_equal(voxels, expected[0]) and np.allclose(affine, expected[1])


def test_slope_type_and_tilt_do_not_change_the_mask(clinseg, trained, image, expected, tmp_path):
    array, affine = image
    tilted = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, -0.1, 0.15) @ affine[:3, :3], (9, -20, 7))
    forms = {
        "float": nib.Nifti1Image(array.astype(np.float32), affine),
        "big_endian": nib.Nifti1Image(array, affine, nib.Nifti1Header(endianness=">")),
        "one_frame": nib.Nifti1Image(array[..., None], affine),
        "oblique": nib.Nifti1Image(array, tilted),
    }
    sloped = nib.Nifti1Image(array, affine)
    sloped.header.set_slope_inter(2.0, 0.0)  # the stored numbers are half of what is meant
    nib.save(nib.Nifti1Image(array * 2.0, affine, sloped.header), tmp_path / "sloped.nii.gz")
    for name, form in forms.items():
        nib.save(form, tmp_path / f"{name}.nii.gz")
    for name in [*forms, "sloped"]:
        mask = predict(clinseg, trained, tmp_path / f"{name}.nii.gz", tmp_path / name)
        assert np.array_equal(mask.affine, nib.load(tmp_path / f"{name}.nii.gz").affine)
        assert np.array_equal(in_patient_space(mask)[0], expected[0]), name


def test_a_dicom_series_gives_the_same_mask_and_no_name_leaves_it(
    clinseg, trained, image, expected, tmp_path
):
    write_series(tmp_path / "series", as_volume(*image))
    mask = predict(clinseg, trained, tmp_path / "series", tmp_path / "out")
    voxels, affine = in_patient_space(mask)
    assert np.array_equal(voxels, expected[0]) and np.allclose(affine, expected[1], atol=1e-4)
    for path in (tmp_path / "out").iterdir():
        assert b"Made^Up" not in path.read_bytes() and b"made-up" not in path.read_bytes()


def test_masks_leave_as_dicom_objects_that_say_the_same_in_the_patient(clinseg, trained, image, tmp_path):
    import highdicom

    write_series(tmp_path / "scan", as_volume(*image))
    forms = "dicom-sr,dicom-seg,dicom-seg-fractional,rtstruct"
    answer = clinseg(
        "predict",
        trained.model,
        tmp_path / "scan",
        "-o",
        tmp_path / "out",
        "--also",
        forms,
        "--probabilities",
    )
    assert answer.code == 0, answer.err
    mask = nib.load(tmp_path / "out/scan.nii.gz")
    segmentation = highdicom.seg.segread(tmp_path / "out/dicom-seg/scan.dcm")
    found = segmentation.get_volume(combine_segments=True, allow_missing_positions=True)
    lps_to_ras = np.diag([-1, -1, 1, 1])
    voxels = np.argwhere(np.asarray(mask.dataobj)).astype(float)
    placed = np.linalg.inv(lps_to_ras @ found.affine) @ mask.affine @ np.c_[voxels, np.ones(len(voxels))].T
    indices = np.rint(placed[:3]).astype(int)
    assert np.abs(placed[:3] - indices).max() < 0.01
    assert np.array_equal(found.array[tuple(indices)], np.asarray(mask.dataobj)[np.asarray(mask.dataobj) > 0])
    assert np.count_nonzero(found.array) == len(voxels)
    assert [s.SegmentLabel for s in segmentation.SegmentSequence] == ["shell", "core"]
    assert segmentation.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Lesion"
    report = json.loads((tmp_path / "out/report.json").read_text())
    measured = highdicom.sr.srread(tmp_path / "out/dicom-sr/scan.dcm").content
    groups = measured.get_volumetric_roi_measurement_groups()
    told = {group.tracking_identifier: group.get_measurements()[0].value for group in groups}
    assert told == pytest.approx(report["cases"][0]["volumes_ml"], rel=1e-6)
    referred = {group.referenced_segment.referenced_sop_instance_uid for group in groups}
    assert referred == {segmentation.SOPInstanceUID}
    for form, known in report["cases"][0]["exports"].items():
        assert sha256_of(tmp_path / f"out/{form}/scan.dcm") == known
    assert (
        clinseg(
            "predict", trained.model, tmp_path / "scan", "-o", tmp_path / "b", "--also", "rtstruct,x"
        ).code
        == 2
    )


def test_nothing_of_an_earlier_mask_stays_beside_a_new_one(clinseg, trained, image, tmp_path):
    write_series(tmp_path / "scan", as_volume(*image))
    out, last = tmp_path / "out", trained.run / "checkpoints/last.safetensors"
    contours, segmentation = out / "rtstruct/scan.dcm", out / "dicom-seg/scan.dcm"
    arguments = [tmp_path / "scan", "-o", out]
    assert clinseg("predict", trained.model, *arguments, "--also", "rtstruct,dicom-seg").code == 0
    shutil.copy(contours, tmp_path / "a.dcm")
    assert clinseg("predict", last, *arguments, "--also", "dicom-seg").code == 0
    (case,) = json.loads((out / "report.json").read_text())["cases"]
    assert case["exports"] == {"dicom-seg": sha256_of(segmentation)} and not contours.exists()
    drawn = pydicom.dcmread(tmp_path / "a.dcm")
    drawn.Manufacturer = "a contouring program"
    drawn.save_as(contours)
    answer = clinseg("predict", last, *arguments)
    assert (answer.code, str(contours) in answer.err, contours.exists()) == (2, True, True)
    contours.unlink()
    slices = sorted((tmp_path / "scan").iterdir())
    slices[2].unlink()
    assert clinseg("predict", last, *arguments).code == 3
    assert not [path for path in out.rglob("scan.*") if path.is_file()]


def test_dicom_objects_are_only_made_of_dicom_series(clinseg, trained, image, tmp_path):
    nib.save(nib.Nifti1Image(*image), tmp_path / "scan.nii.gz")
    answer = clinseg(
        "predict", trained.model, tmp_path / "scan.nii.gz", "-o", tmp_path / "out", "--also", "rtstruct"
    )
    assert (answer.code, "scan: --also makes DICOM objects" in answer.err) == (2, True)
    assert not (tmp_path / "out").exists()
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    refuse_without_series([Case("disc", "disc", (tmp_path / "DICOMDIR",))])


def test_one_series_of_a_study_is_predicted_as_if_it_lay_alone(clinseg, trained, image, expected, tmp_path):
    array, affine = image
    write_series(tmp_path / "study/one", as_volume(array, affine), description="Main")
    write_series(tmp_path / "study/other", as_volume(array[::-1], affine), description="Other")
    answer = clinseg("predict", trained.model, tmp_path / "study", "-o", tmp_path / "out")
    assert answer.code == 3 and "--series" in answer.err and "Other" in answer.err
    answer = clinseg("predict", trained.model, tmp_path / "study", "--series", "main", "-o", tmp_path / "out")
    assert answer.code == 0, answer.err
    voxels, _ = in_patient_space(nib.load(tmp_path / "out/study.nii.gz"))
    assert np.array_equal(voxels, expected[0])
    (case,) = json.loads((tmp_path / "out/report.json").read_text())["cases"]
    assert "Main" in case["warnings"][0] and "one of 2 that lie there" in case["warnings"][0]
    answer = clinseg(
        "predict", trained.model, trained.manifest.parent / "imagesTr", "--series", "main", "-o", "x"
    )
    assert answer.code == 2 and "no-dicom" in answer.err
    answer = clinseg("series", tmp_path / "study")
    assert answer.code == 0 and "Other" in answer.out and "Made^Up" not in answer.out + answer.err


def test_what_a_regularised_series_became_stands_in_the_report(clinseg, trained, image, tmp_path):
    write_series(tmp_path / "series", as_volume(*image))
    (tmp_path / "series/010.dcm").unlink()
    predicted = ("predict", trained.model, tmp_path / "series", "-o", tmp_path / "out")
    assert "slice-step" in clinseg(*predicted).err
    assert clinseg(*predicted, "--regularise").code == 0
    (case,) = json.loads((tmp_path / "out/report.json").read_text())["cases"]
    assert "1 slices mixed from their neighbours" in case["warnings"][0]
    assert nib.load(tmp_path / "out/series.nii.gz").shape == image[0].shape


def test_a_process_that_read_dicom_ends_soundly(trained, image, tmp_path):
    write_series(tmp_path / "series", as_volume(*image))
    command = [sys.executable, "-m", "pipeline", "predict", trained.model, tmp_path / "series"]
    done = subprocess.run([*command, "-o", tmp_path / "out"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_predict_and_evaluate_reproduce_the_runs_own_metrics(clinseg, trained, tmp_path):
    validation = json.loads((trained.run / "split.json").read_text())["validation"]
    images = [trained.manifest.parent / f"imagesTr/{case}.nii.gz" for case in validation]
    assert clinseg("predict", trained.model, *images, "-o", tmp_path / "out").code == 0
    references = tmp_path / "references"
    references.mkdir()
    for case in validation:
        (references / f"{case}.nii.gz").symlink_to(trained.manifest.parent / f"labelsTr/{case}.nii.gz")
    answer = clinseg("evaluate", tmp_path / "out", references, "-o", tmp_path / "metrics.csv")
    assert answer.code == 0 and "shell" in answer.out
    assert (tmp_path / "metrics.csv").read_text() == (trained.run / "cases.csv").read_text()
    with (tmp_path / "metrics.csv").open() as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"shell", "core"}


def test_the_mask_and_the_report_say_what_they_are(clinseg, trained, image, tmp_path):
    nib.save(nib.Nifti1Image(*image), tmp_path / "scan_0000.nii.gz")
    mask = predict(clinseg, trained, tmp_path / "scan_0000.nii.gz", tmp_path / "out")
    assert mask.get_data_dtype() == np.uint8
    assert read_label_names(tmp_path / "out/scan.nii.gz") == {"background": 0, "shell": 1, "core": 2}
    report = json.loads((tmp_path / "out/report.json").read_text())
    core, shell = report["terminology"]["core"], report["terminology"]["shell"]
    assert (core["code"]["meaning"], core["colour"]) == ("Lesion", "#112233")
    assert (shell["code"]["value"], shell["colour"]) == (UNKNOWN.code.value, PALETTE[0])
    rows = [shlex.split(line) for line in (tmp_path / "out/labels.txt").read_text().splitlines()[1:]]
    assert [(row[0], row[-1]) for row in rows] == [("0", "background"), ("1", "shell"), ("2", "core")]
    assert rows[2][1:4] == ["17", "34", "51"]
    (case,) = report["cases"]
    voxels = read_label_map(tmp_path / "out/scan.nii.gz").array
    assert case["volumes_ml"]["core"] == pytest.approx(
        (voxels == 2).sum() * abs(np.linalg.det(image[1])) / 1000
    )
    assert case["num_windows"] > 0 and len(case["input_hashes"][0]) == len(report["model_sha256"]) == 64


def test_mlflow_has_the_whole_record(trained):
    (run,) = sqlite3.connect(trained.folder / "mlruns/mlflow.db").execute("select run_uuid, status from runs")
    with sqlite3.connect(trained.folder / "mlruns/mlflow.db") as database:
        metrics = {key for (key,) in database.execute("select distinct key from metrics")}
        parameters = {key for (key,) in database.execute("select distinct key from params")}
    assert run[1] == "FINISHED"
    assert {"training/loss", "training/learning_rate", "validation/dice/core", "best/dice/mean"} <= metrics
    assert {"training.seed", "network.features", "data.manifest"} <= parameters
    artifacts = {p.name for p in (trained.folder / "mlruns/artifacts").rglob("*") if p.is_file()}
    assert {"config.yaml", "cases.csv", "split.json", "curves.png", "best.safetensors"} <= artifacts
    assert any(name.endswith(".png") and "-of-" in name for name in artifacts)


def test_runs_lists_it_and_ids_find_it(clinseg, trained, image, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.folder)
    listing = clinseg("runs")
    assert trained.run.name in listing.out and "finished" in listing.out
    nib.save(nib.Nifti1Image(*image), tmp_path / "scan.nii.gz")
    run_id = json.loads((trained.run / "delivery.json").read_text())["run_id"]
    for number, model in enumerate(("latest", trained.run.name, run_id)):
        answer = clinseg("predict", model, tmp_path / "scan.nii.gz", "-o", tmp_path / str(number))
        assert answer.code == 0, answer.err


def test_a_run_of_another_disk_is_fetched_by_its_id(clinseg, trained, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained.folder}/mlruns/mlflow.db")
    nib.save(nib.Nifti1Image(*image), tmp_path / "scan.nii.gz")
    run_id = json.loads((trained.run / "delivery.json").read_text())["run_id"]
    answer = clinseg("predict", run_id, "scan.nii.gz", "-o", "out")
    assert answer.code == 0, answer.err
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["run"] == trained.run.name
    assert clinseg("predict", "0" * 32, "scan.nii.gz", "-o", "out").code == 2


def test_what_was_predicted_is_logged_and_a_changed_mask_is_found(clinseg, trained, image, tmp_path):
    nib.save(nib.Nifti1Image(*image), tmp_path / "scan.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    inputs = [tmp_path / "scan.nii.gz", tmp_path / "broken.nii.gz"]
    assert clinseg("predict", trained.model, *inputs, "-o", tmp_path / "out").code == 3
    lines = [json.loads(line) for line in (tmp_path / "out/audit.jsonl").read_text().splitlines()]
    entries = {line["case"]: line for line in lines}
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert entries["scan"]["inputs"] == [sha256_of(tmp_path / "scan.nii.gz")]
    assert entries["scan"]["outputs"] == {"scan.nii.gz": sha256_of(tmp_path / "out/scan.nii.gz")}
    assert entries["scan"]["model"] == report["model_sha256"]
    assert entries["broken"]["faults"] and not entries["broken"]["outputs"]
    assert report["audit_head"] == lines[-1]["hash"]
    assert clinseg("predict", trained.model, inputs[0], "-o", tmp_path / "out").code == 0
    answer = clinseg("audit", "verify", tmp_path / "out")
    assert (answer.code, "3 entries are whole" in answer.out) == (0, True)
    (tmp_path / "out/scan.nii.gz").write_bytes(b"another mask")
    assert clinseg("audit", "verify", tmp_path / "out/audit.jsonl").code == 6


def test_a_card_tells_what_is_known_and_asks_for_the_rest(clinseg, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.folder)
    assert clinseg("card", "latest", "-o", tmp_path / "card.md").code == 0
    text = (tmp_path / "card.md").read_text()
    assert trained.run.name in text and "| core | 2 | Lesion |  | SCT 52988006 |" in text
    with (trained.run / "cases.csv").open() as file:
        dice = [float(row["dice"]) for row in csv.DictReader(file) if row["label"] == "shell"]
    assert f"| dice, shell | {np.mean(dice):.4g} |" in text
    assert "names no patients" in text  # as in every manifest of the Decathlon
    assert text.count("**To be filled in by a person:**") >= 5
    (tmp_path / "card.md").write_text("filled in")
    again = clinseg("card", "latest", "-o", tmp_path / "card.md")
    assert again.code == 2 and "filled in by hand" in again.err
    assert (tmp_path / "card.md").read_text() == "filled in"
    monkeypatch.chdir(tmp_path)
    elsewhere = clinseg("card", trained.model)
    assert elsewhere.code == 0 and "validation/dice/shell" in elsewhere.out
