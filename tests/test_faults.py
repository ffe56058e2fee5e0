"""What goes wrong ends in a clear line and the stated exit code, never in a traceback or half a file."""

import gzip
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.data.synthetic import write_phantom_study
from pipeline.files import atomic_path, check_writable

CONFIG = Path(__file__).parents[1] / "configs/smoke/hippocampus.yaml"


@pytest.fixture(scope="module")
def sound_study(tmp_path_factory):
    return write_phantom_study(tmp_path_factory.mktemp("sound"), num_cases=5).parent


@pytest.fixture
def study(sound_study, tmp_path):
    return shutil.copytree(sound_study, tmp_path / "study")


def paths(study):
    name = sorted(p.name for p in (study / "imagesTr").iterdir())[1]
    return study / "imagesTr" / name, study / "labelsTr" / name


def rewrite(path, array=None, affine=None, change=lambda image: None):
    """Changes a NIfTI file in place."""
    old = nib.load(path)
    array = np.asarray(old.dataobj) if array is None else array
    image = nib.Nifti1Image(array, old.affine if affine is None else affine)
    change(image)
    nib.save(image, path)


def patch_header(path, offset, form, *values):
    """Writes numbers straight into the header, as no library would."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(f"<{form}", raw, offset, *values)
    path.write_bytes(gzip.compress(bytes(raw)))


def remove_label(study):
    paths(study)[1].unlink()


def truncate(study):
    image, _ = paths(study)
    image.write_bytes(image.read_bytes()[:-500])


def flip_a_byte(study):
    image, _ = paths(study)
    raw = bytearray(image.read_bytes())
    raw[-6] ^= 0x40  # in the CRC
    image.write_bytes(raw)


def lie_about_the_size(study):
    patch_header(paths(study)[0], 42, "h", 4000)


def claim_a_hundred_thousand_cubed(study):
    patch_header(paths(study)[0], 42, "3h", 30000, 30000, 30000)


def not_an_image(study):
    paths(study)[0].write_bytes(b"this is a text")


def not_a_number(study):
    array = np.asarray(nib.load(paths(study)[0]).dataobj).astype(np.float32)
    array[3, 3, 3] = np.nan
    rewrite(paths(study)[0], array)


def zero_spacing(study):
    patch_header(paths(study)[0], 80, "f", 0.0)


def absurd_spacing(study):
    for path in paths(study):
        rewrite(path, affine=np.diag([1000.0, 1, 1, 1]))


def shear(study):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    for path in paths(study):
        rewrite(path, affine=affine, change=lambda image: image.set_qform(np.eye(4), 0))


def singular(study):
    patch_header(paths(study)[0], 280, "4f", 0, 0, 0, 0)


def other_shape(study):
    rewrite(paths(study)[1], np.asarray(nib.load(paths(study)[1]).dataobj)[:-1])


def other_affine(study):
    affine = nib.load(paths(study)[1]).affine.copy()
    affine[0, 3] += 3
    rewrite(paths(study)[1], affine=affine)


def undeclared_value(study):
    array = np.asarray(nib.load(paths(study)[1]).dataobj).copy()
    array[0, 0, 0] = 9
    rewrite(paths(study)[1], array)


def half_a_label(study):
    rewrite(paths(study)[1], np.asarray(nib.load(paths(study)[1]).dataobj) * np.float32(0.5))


def same_image_twice(study):
    images = sorted((study / "imagesTr").iterdir())
    shutil.copy(images[0], images[1])


def disagreeing_channels(study):
    manifest = json.loads((study / "dataset.json").read_text())
    manifest["modality"] = {"0": "T1", "1": "T2"}
    for entry in manifest["training"]:
        entry["image"] = [entry["image"], entry["image"].replace("imagesTr", "second")]
    shutil.copytree(study / "imagesTr", study / "second")
    (study / "dataset.json").write_text(json.dumps(manifest))
    rewrite(study / "second" / paths(study)[0].name, affine=np.diag([2.0, 1, 1, 1]))


REFUSED = {
    remove_label: "missing-file",
    truncate: "truncated",
    flip_a_byte: "gzip-damaged",
    lie_about_the_size: "truncated",
    claim_a_hundred_thousand_cubed: "too-large",
    not_an_image: "",
    not_a_number: "non-finite",
    zero_spacing: "pixdim",
    absurd_spacing: "spacing-range",
    shear: "shear",
    singular: "affine-singular",
    other_shape: "shape-mismatch",
    other_affine: "affine-mismatch",
    undeclared_value: "label-values",
    half_a_label: "label-not-whole",
    same_image_twice: "duplicate-image",
    disagreeing_channels: "affine-mismatch",
}


@pytest.mark.parametrize("damage", REFUSED, ids=lambda damage: damage.__name__)
def test_check_refuses_and_names_the_case(clinseg, study, damage):
    damage(study)
    answer = clinseg("check", CONFIG, "--set", f"data.manifest={study / 'dataset.json'}")
    assert answer.code == 3
    faults = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert any(REFUSED[damage] in fault for fault in faults), answer.err
    assert all("phantom_02" in fault for fault in faults), "the sound cases are not blamed"


def empty_label(study):
    rewrite(paths(study)[1], np.zeros_like(np.asarray(nib.load(paths(study)[1]).dataobj)))


def forms_disagree(study):
    for path in paths(study):
        moved = nib.load(path).affine.copy()
        moved[0, 3] += 5
        rewrite(
            path,
            change=lambda image, moved=moved: (image.set_sform(image.affine, 1), image.set_qform(moved, 1)),
        )


@pytest.mark.parametrize(("oddity", "rule"), [(empty_label, "empty-label"), (forms_disagree, "sform-qform")])
def test_check_tells_what_is_odd_and_accepts_it(clinseg, study, oddity, rule):
    oddity(study)
    answer = clinseg("check", CONFIG, "--set", f"data.manifest={study / 'dataset.json'}")
    assert answer.code == 0 and rule in answer.err and "phantom_02" in answer.err


def test_all_faults_come_together_and_training_does_not_start(clinseg, study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    not_a_number(study)
    undeclared_value(study)
    for command in ("check", "train"):
        answer = clinseg(
            command,
            CONFIG,
            f"--set=data.manifest={study / 'dataset.json'}",
            f"--set=data.cache_dir={tmp_path}/c",
        )
        assert answer.code == 3 and "non-finite" in answer.err and "label-values" in answer.err
    assert not (tmp_path / "mlruns").exists()


def test_one_broken_case_does_not_stop_the_others(clinseg, trained, study, tmp_path):
    truncate(study)
    answer = clinseg("predict", trained.model, study / "imagesTr", "-o", tmp_path / "out")
    assert answer.code == 3 and "truncated" in answer.err
    masks = {p.name for p in (tmp_path / "out").glob("*.nii.gz")}
    assert len(masks) == 4 and "phantom_02.nii.gz" not in masks
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [case["status"] for case in report["cases"]].count("refused") == 1


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_malicious_pickle_is_refused_unopened(clinseg, study, tmp_path):
    model = tmp_path / "model.safetensors"
    model.write_bytes(pickle.dumps(Malicious(tmp_path / "marker")))
    answer = clinseg("predict", model, study / "imagesTr", "-o", tmp_path / "out")
    assert answer.code == 6 and not (tmp_path / "marker").exists()


def test_a_damaged_checkpoint_is_refused(clinseg, trained, study, tmp_path):
    raw = bytearray(trained.model.read_bytes())
    raw[-100] ^= 1
    (tmp_path / "model.safetensors").write_bytes(raw)
    answer = clinseg("predict", tmp_path / "model.safetensors", study / "imagesTr", "-o", tmp_path / "out")
    assert answer.code == 6 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["train", "{config}", "--set", "training.epoch=3"], 2, "training.epochs"),
        (["train", "{config}", "--set", "inference.largest_component=[liver]"], 2, "shell, core"),
        (["check", "{config}", "--set", "inference.largest_component=[liver]"], 2, "shell, core"),
        (["check", "{config}", "--set", "data.left_right_pairs=[[shell, liver]]"], 2, "called liver"),
        (["train", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["train"], 2, "CONFIG"),
        (["train", "--resume", "latest"], 2, "latest"),
        (["train", "nowhere.yaml", "--resume", "latest"], 2, "leave nowhere.yaml out, or --resume"),
        (["train", "{config}", "--fold", "7"], 2, "fold"),
        (["predict", "no-such-run", "{study}/imagesTr", "-o", "out"], 2, "no-such-run"),
        (["predict", "{model}", "nowhere.nii.gz", "-o", "out"], 3, "nowhere.nii.gz"),
        (["predict", "{model}", "{study}/imagesTr", "-o", "{study}/imagesTr"], 2, "would-overwrite"),
        (["predict", "{model}", "{study}/imagesTr", "-o", "out", "--device", "cuda"], 2, "no-gpu"),
        (["predict", "{model}", "{study}/imagesTr", "-o", "out", "--device", "CPU"], 2, "unknown-device"),
        (["predict", "{model}", "{study}/imagesTr", "-o", "out", "--device", ""], 2, "unknown-device"),
        (["evaluate", "nowhere", "{study}/labelsTr"], 3, "nowhere"),
        (["predict", "{model}"], 2, ""),
        (["sync", "latest"], 2, "latest"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_words_end_with_the_stated_code(
    clinseg, trained, study, tmp_path, monkeypatch, arguments, code, told
):
    monkeypatch.chdir(tmp_path)
    known = {"config": CONFIG, "study": study, "model": trained.model}
    words = [word.format(**known) for word in arguments]
    if "{config}" in arguments:
        words += ["--set", f"data.manifest={study / 'dataset.json'}"]
    answer = clinseg(*words)
    assert answer.code == code, answer.err
    assert told in answer.err
    assert not (tmp_path / "mlruns").exists() and not list(tmp_path.glob("out/*.nii.gz"))


def test_a_config_with_several_faults_tells_all_with_line_and_nearest_name(clinseg, tmp_path):
    text = CONFIG.read_text().replace("  batch_size: 2\n  patch", "  bacth_size: 2\n  patch")
    text = text.replace("overlap: 0.5", "overlap: half")
    (tmp_path / "job.yaml").write_text(text)
    answer = clinseg("check", tmp_path / "job.yaml")
    lines = text.splitlines()
    for key, hint in (("bacth_size", "batch_size"), ("overlap", "overlap")):
        number = next(i for i, line in enumerate(lines, 1) if line.strip().startswith(f"{key}:"))
        assert f"job.yaml:{number}:" in answer.err and hint in answer.err
    assert answer.code == 2


def test_a_folder_that_cannot_be_written(clinseg, trained, study, tmp_path):
    (tmp_path / "file").write_text("in the way")
    answer = clinseg("predict", trained.model, study / "imagesTr", "-o", tmp_path / "file" / "out")
    assert answer.code == 4 and "cannot be written" in answer.err


def test_two_threads_may_write_the_same_file(tmp_path):
    with atomic_path(tmp_path / "a.nii.gz") as one, atomic_path(tmp_path / "a.nii.gz") as other:
        assert one != other and one.name.endswith(".nii.gz")
        one.write_text("whole")
        other.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
    assert (tmp_path / "a.nii.gz").read_text() == "whole"


def test_trying_a_folder_leaves_what_lies_there(tmp_path):
    (tmp_path / "writable").write_text("mine")
    check_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["writable"]
    assert (tmp_path / "writable").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere; the test above serves it")
def test_a_folder_without_permission(clinseg, trained, study, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    answer = clinseg("predict", trained.model, study / "imagesTr", "-o", tmp_path / "locked" / "out")
    assert answer.code == 4 and "permission" in answer.err


def test_a_full_disk_leaves_whole_masks_or_none(clinseg, trained, study, small_disk):
    (small_disk / "filler").write_bytes(b"x" * 50_000)
    answer = clinseg("predict", trained.model, study / "imagesTr", "-o", small_disk / "out")
    assert answer.code == 4 and "disk is full" in answer.err
    for path in (small_disk / "out").glob("*"):
        if path.name == "report.json":
            assert json.loads(path.read_text())["cases"]
        elif path.name == "audit.jsonl":
            assert all(json.loads(line)["hash"] for line in path.read_text().splitlines())
        elif path.name != "labels.txt":
            assert path.name.endswith(".nii.gz")
            assert np.asarray(nib.load(path).dataobj).shape


def test_a_training_on_a_full_disk_ends_cleanly(trained, study, small_disk):
    settings = {"data.manifest": study / "dataset.json", "data.cache_dir": trained.folder / "cache"}
    command = [sys.executable, "-m", "pipeline", "train", str(CONFIG)]
    command += [f"--set={name}={value}" for name, value in settings.items()]
    done = subprocess.run(command, cwd=small_disk, capture_output=True, text=True, check=False)
    assert done.returncode == 4 and "disk is too small: it needs" in done.stderr
    assert "Traceback" not in done.stderr


def test_too_little_memory_is_said(trained, study, tmp_path):
    """A volume that cannot be held is refused before anything is allocated."""
    claim_a_hundred_thousand_cubed(study)
    limit = 8 * 2**30

    def restrict():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    command = [sys.executable, "-m", "pipeline", "predict", str(trained.model), str(paths(study)[0])]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=restrict,
    )
    assert done.returncode == 3 and "phantom_02" in done.stderr and "Traceback" not in done.stderr
