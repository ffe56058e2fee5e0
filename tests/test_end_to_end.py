"""From images to masks as a user does it, with geometry that survives every way of storing an image."""

import csv
import json
import sqlite3
import subprocess
import sys

import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from pipeline.data.images import read_label_map
from pipeline.export.nifti import read_label_names


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


def write_series(folder, array, affine, description="Main"):
    """An axial series, one file per slice along the last axis."""
    folder.mkdir(parents=True)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / spacing
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(array.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID = study, series
        slice_.FrameOfReferenceUID, slice_.Modality = frame, "MR"
        slice_.SeriesDescription = description
        slice_.PatientName, slice_.PatientID = "Secret^Name", "4711"
        slice_.Rows, slice_.Columns = array.shape[1], array.shape[0]
        slice_.ImageOrientationPatient = [f"{v:.10g}" for v in (*axes[:, 0], *axes[:, 1])]
        slice_.ImagePositionPatient = [f"{v:.10g}" for v in (lps @ (0, 0, k, 1))[:3]]
        slice_.PixelSpacing = [f"{spacing[1]:.10g}", f"{spacing[0]:.10g}"]
        slice_.SliceThickness, slice_.InstanceNumber = spacing[2], k + 1
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation = 15, 1
        slice_.PixelData = np.ascontiguousarray(array[:, :, k].T).tobytes()
        pydicom.dcmwrite(folder / f"{array.shape[2] - k:03d}.dcm", slice_, enforce_file_format=True)


def test_a_dicom_series_gives_the_same_mask_and_no_name_leaves_it(
    clinseg, trained, image, expected, tmp_path
):
    write_series(tmp_path / "series", *image)
    mask = predict(clinseg, trained, tmp_path / "series", tmp_path / "out")
    voxels, affine = in_patient_space(mask)
    assert np.array_equal(voxels, expected[0]) and np.allclose(affine, expected[1], atol=1e-4)
    for path in (tmp_path / "out").iterdir():
        assert b"Secret" not in path.read_bytes() and b"4711" not in path.read_bytes()


def test_one_series_of_a_study_is_predicted_as_if_it_lay_alone(clinseg, trained, image, expected, tmp_path):
    array, affine = image
    write_series(tmp_path / "study/one", array, affine)
    write_series(tmp_path / "study/other", array[::-1], affine, description="Other")
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
    assert answer.code == 0 and "Other" in answer.out and "Secret" not in answer.out + answer.err


def test_what_a_regularised_series_became_stands_in_the_report(clinseg, trained, image, tmp_path):
    write_series(tmp_path / "series", *image)
    (tmp_path / "series/010.dcm").unlink()
    predicted = ("predict", trained.model, tmp_path / "series", "-o", tmp_path / "out")
    assert "slice-step" in clinseg(*predicted).err
    assert clinseg(*predicted, "--regularise").code == 0
    (case,) = json.loads((tmp_path / "out/report.json").read_text())["cases"]
    assert "1 slices mixed from their neighbours" in case["warnings"][0]
    assert nib.load(tmp_path / "out/series.nii.gz").shape == image[0].shape


def test_a_process_that_read_dicom_ends_soundly(trained, image, tmp_path):
    write_series(tmp_path / "series", *image)
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
