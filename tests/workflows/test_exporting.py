"""Exported models give the same labels, by the programs that they were exported for."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from pipeline.checkpoint import read_checkpoint, write_checkpoint
from pipeline.export.graphs import load_onnx, load_torch_export
from pipeline.workflows.exporting import export

pytestmark = pytest.mark.slow
REQUIRED = [
    "schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version",
    "task", "description", "authors", "copyright", "network_data_format",
]  # fmt: skip
TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "properties": {"num_channels": {"type": "integer"}, "spatial_shape": {"type": "array"}},
}
SCHEMA = {
    "type": "object",
    "required": REQUIRED,
    "properties": {
        "network_data_format": {
            "required": ["inputs", "outputs"],
            "properties": {name: {"additionalProperties": TENSOR} for name in ("inputs", "outputs")},
        }
    },
}


GAPS = {"labels": {"background": 0, "shell": 7, "core": 300}, "structures": {"shell": (7,), "core": (300,)}}


@pytest.fixture
def image(trained, tmp_path):
    """A phantom, turned and off the model's grid."""
    stored = nib.load(sorted((trained.manifest.parent / "imagesTr").glob("*.nii.gz"))[0])
    turned = stored.as_reoriented(ornt_transform(io_orientation(stored.affine), axcodes2ornt("PIR")))
    path = tmp_path / "images/scan.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(np.asarray(turned.dataobj).astype(np.float32), turned.affine), path)
    return path


@pytest.mark.parametrize(("form", "load"), [("onnx", load_onnx), ("torch-export", load_torch_export)])
def test_a_graph_gives_the_same_labels_whatever_the_batch(trained, image, tmp_path, form, load):
    path = tmp_path / {"onnx": "m.onnx", "torch-export": "m.pt2"}[form]
    result = export(str(trained.model), form, path, image)
    assert result.num_differing == 0 < result.num_voxels
    assert f"| Voxels that get another label | 0 of {result.num_voxels} " in result.card.read_text()
    graph, size = load(path), (24, 24, 24)
    windows = torch.randn(3, 1, *size)
    with torch.no_grad():
        assert torch.allclose(graph(windows)[1:2], graph(windows[1:2]), atol=1e-4)


def variant(trained, folder, job=(), **changes):
    """The trained model as if it had been trained otherwise."""
    checkpoint = read_checkpoint(trained.model)
    settings = json.loads(json.dumps(checkpoint.job))
    for key, value in dict(job).items():
        section, name = key.split(".")
        settings[section][name] = value
    path = folder / "variant.safetensors"
    write_checkpoint(path, replace(checkpoint, job=settings, **changes))
    return path


# Each costs two starts of MONAI, so that a variant holds all that can be told apart when it fails.
@pytest.mark.parametrize(
    ("job", "changes", "share"),
    [
        (
            {
                "preprocessing.orientation": "LAS",
                "preprocessing.normalisation": "window",
                "preprocessing.window": [50.0, 600.0],
                "inference.largest_component": ["core"],
            },
            GAPS,
            0,
        ),
        ({"preprocessing.spacing": [1.3, 0.9, 1.1]}, {}, 0.001),
    ],
    ids=["turned, with gaps and a window", "resampled"],
)
def test_monai_runs_the_bundle_to_the_same_mask(trained, image, tmp_path, clinseg, job, changes, share):
    model = variant(trained, tmp_path, job, **changes)
    answer = clinseg("export", model, "--format", "bundle", "-o", tmp_path / "bundle", "--on", image)
    assert answer.code == 0, answer.err
    assert clinseg("predict", model, image, "-o", tmp_path / "ours").code == 0
    command = [
        sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json",
        "--meta_file", "configs/metadata.json", "--dataset_dir", str(image.parent),
        "--output_dir", str(tmp_path / "theirs"),
    ]  # fmt: skip
    subprocess.run(command, cwd=tmp_path / "bundle", check=True, capture_output=True)
    ours, theirs = nib.load(tmp_path / "ours/scan.nii.gz"), nib.load(tmp_path / "theirs/scan.nii.gz")
    assert np.allclose(ours.affine, theirs.affine, atol=1e-4)
    differing = np.asarray(ours.dataobj) != np.asarray(theirs.dataobj)
    assert differing.mean() <= share and np.asarray(theirs.dataobj).any()
    assert (
        f"{np.count_nonzero(differing)} of {differing.size}"
        in (tmp_path / "bundle/docs/README.md").read_text()
    )


_VERIFY = """
from monai.bundle import verify_metadata, verify_net_in_out
verify_metadata(meta_file="configs/metadata.json", filepath="../schema.json")
verify_net_in_out(
    net_id="network_def", meta_file="configs/metadata.json", config_file="configs/inference.json",
    device="cpu",
)
"""


def test_monai_accepts_the_metadata_and_runs_the_model_as_it_is(trained, tmp_path, clinseg):
    answer = clinseg("export", trained.model, "--format", "bundle", "-o", tmp_path / "bundle")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1].startswith("0 of ")
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))  # as it is there, nothing is fetched
    command = [sys.executable, "-c", _VERIFY]
    done = subprocess.run(command, cwd=tmp_path / "bundle", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_regions_leave_as_regions(trained, image, tmp_path, clinseg):
    regions = {"all": (1, 2, 3), "middle": (2, 3), "inner": (3,)}
    labels = {"background": 0, "shell": 1, "core": 2, "heart": 3}
    settings = {
        "data.regions": {name: list(values) for name, values in regions.items()},
        "data.terminology": {},
    }
    model = variant(trained, tmp_path, settings, labels=labels, structures=regions)
    answer = clinseg("export", model, "--format", "bundle", "-o", tmp_path / "bundle", "--on", image)
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1].startswith("0 of ")


def test_what_cannot_be_exported_is_refused(trained, tmp_path, clinseg):
    for arguments, rule in (
        (["--format", "caffe", "-o", tmp_path / "x"], "unknown-format"),
        (["--format", "onnx", "-o", tmp_path / "x.pt"], "suffix"),
        (["--format", "bundle", "-o", tmp_path], "exists"),
    ):
        answer = clinseg("export", trained.model, *arguments)
        assert (answer.code, rule in answer.err) == (2, True)
    assert not list(Path(tmp_path).glob("x*"))
