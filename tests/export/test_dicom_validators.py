"""What others' programs find in our DICOM objects: no error, and voxels, names and colours in place."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its customary name

from pipeline.export.dicom_seg import write_segmentation
from pipeline.export.dicom_sr import Answer, write_answer
from pipeline.export.exporters import EXPORTERS
from pipeline.export.rtstruct import write_structure_set
from pipeline.labels import LabelContract

pytestmark = pytest.mark.slow
REAL = Path(__file__).parents[2] / "../shared/data/dicom"
SERIES = [None, *(REAL / name for name in ("brain/T2reg", "hippocampus_crop"))]
CONTRACT = LabelContract({"background": 0, "left_kidney": 2, "tumour": 5, "spleen": 7})


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs {program} (apt-get install)")


def run(*command):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, errors="replace", check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(params=SERIES, ids=["made up", "brain", "hippocampus"])
def prediction(predicted, request):
    if request.param is not None and not request.param.is_dir():
        pytest.skip("needs ../shared/data/dicom")
    turned = nib.affines.from_matvec(
        nib.eulerangles.euler2mat(0.3, -0.2, 0.15) * (0.9, 0.8, 4), (10, -20, 30)
    )
    return predicted(None if request.param else turned, folder=request.param, contract=CONTRACT)


@needs("dciodvfy")
@needs("dcmdump")
@needs("dsrdump")
def test_validators_find_no_error(prediction, predicted, tmp_path):
    frames = np.random.default_rng(1).random((*prediction.grid.shape, 4)).astype(np.float32)
    nib.save(nib.Nifti1Image(frames, prediction.grid.affine), tmp_path / "p.nii")
    object.__setattr__(prediction, "probabilities", tmp_path / "p.nii")
    objects = dict.fromkeys(EXPORTERS, prediction)
    objects |= {"dicom-seg empty": predicted(is_empty=True, contract=CONTRACT)}
    write_segmentation(tmp_path / "s.dcm", prediction)
    objects |= {"dicom-sr of segments": replace(prediction, segmentation=tmp_path / "s.dcm")}
    for name, one in objects.items():
        path = tmp_path / f"{name}.dcm"
        EXPORTERS[name.split()[0]](path, one)
        assert "Error" not in run("dciodvfy", path), name
        assert not {"E:", "W:"} & set(run("dcmdump", path).split())
        if name.startswith("dicom-sr"):
            told = run("dsrdump", path)
            assert all(line in told for line in ("Imaging Measurement Report", "left_kidney", "mL"))
            assert "E:" not in told.split()  # its only warning: it checks no text in UTF-8


@needs("dciodvfy")
@needs("dsrdump")
def test_validators_find_no_error_in_answers(prediction, tmp_path):
    answer = Answer({"normal": 0.0625, "pneumonia": 0.9375}, ("pneumonia",), 0.875, True)
    write_answer(tmp_path / "a.dcm", answer, prediction.source, prediction.maker)
    assert "Error" not in run("dciodvfy", tmp_path / "a.dcm")
    told = run("dsrdump", tmp_path / "a.dcm")
    assert all(line in told for line in ("Predicted class", "pneumonia", "0.9375"))
    assert "E:" not in told.split()


def test_dcmqi_reads_the_same_segments(prediction, tmp_path):
    program = Path(sys.executable).with_name("segimage2itkimage")
    if not program.is_file():
        pytest.skip("needs dcmqi (pip install)")
    write_segmentation(tmp_path / "a.dcm", prediction)
    run(program, "--inputDICOM", tmp_path / "a.dcm", "--outputDirectory", tmp_path, "--prefix", "s")
    told = json.loads((tmp_path / "s-meta.json").read_text())["segmentAttributes"]
    terms = prediction.contract.terms
    assert [segment[0]["SegmentLabel"] for segment in told] == list(terms)
    for number, ((name, values), (segment,)) in enumerate(
        zip(prediction.contract.structures.items(), told, strict=True), start=1
    ):
        term = terms[name]
        assert segment["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == term.code.value
        colour = bytes.fromhex(term.colour[1:])
        assert np.allclose(segment["recommendedDisplayRGBValue"], list(colour), atol=1)
        assert_same_in_patient(read(tmp_path, number), prediction, values)


def read(folder, number):
    """Voxels and affine of what dcmqi wrote."""
    image = sitk.ReadImage(str(folder / f"s-{number}.nrrd"))
    return voxels_of(image)


def voxels_of(image):
    axes = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps = nib.affines.from_matvec(axes, image.GetOrigin())
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0) > 0, np.diag([-1, -1, 1, 1]) @ lps


def assert_same_in_patient(found, prediction, values):
    array, affine = found
    mask = np.isin(prediction.array, values)
    voxels = np.argwhere(array)
    to_ours = np.linalg.inv(prediction.grid.affine) @ affine
    placed = (to_ours @ np.c_[voxels, np.ones(len(voxels))].T)[:3]
    indices = np.rint(placed).astype(int)
    assert np.abs(placed - indices).max(initial=0) < 0.01
    assert mask[tuple(indices)].all() and len(voxels) == np.count_nonzero(mask)


@needs("plastimatch")
def test_plastimatch_fills_contours_to_the_same_voxels(prediction, tmp_path):
    """It is a planning system's point of view: it knows contours in millimetres, and the images."""
    write_structure_set(tmp_path / "a.dcm", prediction)
    fixed = sitk.GetImageFromArray(np.zeros(prediction.grid.shape[::-1], np.uint8))
    lps = np.diag([-1, -1, 1, 1]) @ prediction.grid.affine
    fixed.SetSpacing(prediction.grid.spacing)
    fixed.SetOrigin(lps[:3, 3].tolist())
    fixed.SetDirection((lps[:3, :3] / prediction.grid.spacing).ravel().tolist())
    sitk.WriteImage(fixed, str(tmp_path / "fixed.nrrd"))
    run(
        "plastimatch", "convert", "--input", tmp_path / "a.dcm", "--fixed", tmp_path / "fixed.nrrd",
        "--output-prefix", tmp_path / "out", "--prefix-format", "nrrd",
    )  # fmt: skip
    for name, values in prediction.contract.structures.items():
        mask = np.isin(prediction.array, values)
        path = tmp_path / f"out/{name}.nrrd"
        found = voxels_of(sitk.ReadImage(str(path)))[0] if path.is_file() else np.zeros_like(mask)
        assert np.array_equal(found, mask), name
