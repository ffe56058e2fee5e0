"""A segmentation feeds a classification: by label maps in a CSV, or by a model that travels with it."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import yaml

from pipeline.checkpoint import read_checkpoint, write_checkpoint
from pipeline.config import DataSection
from pipeline.data.cases import read_manifest
from pipeline.inference.class_table import read_class_table

SIDE = 14
SPACING = np.diag([2.0, 1.0, 1.0, 1.0])


def draw_two(random):
    """A bright and a dark cube somewhere in noise, one on either side, and the label map of each."""
    image = random.normal(0, 1, (SIDE, SIDE, SIDE)).astype(np.float32)
    sides = random.permutation([1, 8])
    labels = []
    for side, brightness in zip(sides, (4, -4), strict=True):
        start = np.array([side, *random.integers(1, SIDE - 6, 2)])
        cube = tuple(slice(low, low + 5) for low in start)
        image[cube] += brightness
        labels.append(np.zeros(image.shape, dtype=np.uint8))
        labels[-1][cube] = 1
    return image, labels


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, SPACING), path)


def write_study(folder, num, seed):
    """Of every image two cases: with the bright cube as the organ and with the dark one."""
    random = np.random.default_rng(seed)
    rows = ["case,patient,image,label,class"]
    for number in range(num):
        image, labels = draw_two(random)
        save(folder / f"{number}.nii.gz", image)
        for kind, label in zip(("bright", "dark"), labels, strict=True):
            save(folder / f"{number}_{kind}.nii.gz", label)
            rows.append(f"{kind}{number},{number},{number}.nii.gz,{number}_{kind}.nii.gz,{kind}")
    path = folder / "cases.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def write_config(folder, manifest, **sections):
    job = {
        "task": "classification",
        "data": {"manifest": str(manifest), "cache_dir": str(folder / "cache"), "num_folds": 2},
        "preprocessing": {"size": [8, 8, 8]},
        "network": {"features": [4, 8]},
        "training": {
            "epochs": 1,
            "steps_per_epoch": 2,
            "batch_size": 8,
            "learning_rate": 0.02,
            "device": "cpu",
        },
        "tracking": {"overlays": 0},
    }
    for name, changes in sections.items():
        job[name] = job[name] | changes
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One folder for all runs: a database of MLflow takes seconds to make."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def here(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").symlink_to(runs)
    return tmp_path


@pytest.mark.parametrize("region", ["crop", "channel"])
def test_the_organ_alone_tells_the_class(clinseg, here, region):
    manifest = write_study(here / "study", 16, 0)
    config = write_config(
        here,
        manifest,
        data={"region_from": "label_map", "region_labels": [1], "fold": 0 if region == "crop" else "none"},
        preprocessing={"region": region, "region_margin": 2.0 if region == "crop" else 0.0},
        training={"steps_per_epoch": 12 if region == "crop" else 80},
    )
    assert clinseg("check", config).code == 0
    assert clinseg("train", config).code == 0
    unseen = write_study(here / "unseen", 8, 1)
    rows = unseen.read_text().splitlines()
    unseen.write_text("\n".join([*rows, "alone,alone,0.nii.gz,,dark", "none,none,0.nii.gz,none.nii.gz,dark"]))
    save(here / "unseen/none.nii.gz", np.zeros((SIDE, SIDE, SIDE), dtype=np.uint8))
    answer = clinseg("predict", "latest", unseen, "-o", here / "out")
    assert answer.code == 3 and "16 of 18" in answer.out
    assert "alone: " in answer.err and "none: its label map holds no value 1" in answer.err
    found = read_class_table(here / "out/predictions.csv")
    told = dict(zip(found.cases, found.predicted, strict=True))
    # The same image is of the one class or of the other, as the label map says.
    assert [case for case, (name,) in told.items() if not case.startswith(name)] == []
    report = json.loads((here / "out/report.json").read_text())
    assert {len(case["input_hashes"]) for case in report["cases"]} == {2, 0}


def write_phantom_classes(trained, path):
    cases = read_manifest(DataSection(manifest=trained.manifest)).cases
    rows = [f"{case.id},{case.images[0]},{'xy'[n % 2]}" for n, case in enumerate(cases)]
    path.write_text("\n".join(["case,image,class", *rows]) + "\n")
    return path


def test_a_model_that_finds_the_region_travels_with_the_classifier(clinseg, trained, here):
    segmenter = here / "segmenter.safetensors"
    segmenter.write_bytes(trained.model.read_bytes())
    manifest = write_phantom_classes(trained, here / "classes.csv")
    config = write_config(
        here,
        manifest,
        data={"region_from": str(segmenter), "region_labels": ["core"], "fold": "none"},
        preprocessing={"region": "both", "region_margin": 1.0},
        training={"epochs": 2, "batch_size": 4},
    )
    assert clinseg("check", config).code == 0
    assert clinseg("train", config).code == 0
    segmenter.unlink()  # from now on, the classifier's own file is all there is
    run = max((here / "mlruns/runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    best = read_checkpoint(run / "checkpoints/best.safetensors")
    assert best.channels == ("image", "region")
    assert best.segmenter.content_hash == read_checkpoint(trained.model).content_hash
    assert clinseg("train", "--resume", run.name).code == 0

    moved = here / "elsewhere/model.safetensors"
    moved.parent.mkdir()
    (run / "checkpoints/best.safetensors").rename(moved)
    assert clinseg("predict", moved, manifest, "-o", here / "inside").code == 0

    # The same answers, to the bit, where label maps made by the same model are given as files.
    rows = [line.split(",") for line in manifest.read_text().splitlines()[1:]]
    images = [image for _, image, _ in rows]
    assert clinseg("predict", trained.model, *images, "-o", here / "masks").code == 0
    job = best.job | {"data": best.job["data"] | {"region_from": "label_map", "region_labels": [2]}}
    write_checkpoint(here / "outside.safetensors", replace(best, job=job, segmenter=None))
    table = [f"{case},{image},masks/{case}.nii.gz" for case, image, _ in rows]
    (here / "given.csv").write_text("\n".join(["case,image,label", *table]) + "\n")
    answer = clinseg("predict", here / "outside.safetensors", here / "given.csv", "-o", here / "outside")
    assert answer.code == 0
    inside, outside = (read_class_table(here / name / "predictions.csv") for name in ("inside", "outside"))
    np.testing.assert_array_equal(inside.probabilities, outside.probabilities)

    answer = clinseg("predict", moved, images[0], "-o", here / "told", "--explain", "grad_cam")
    (written,) = (here / "told/explanations").glob("*.nii.gz")
    found, image = (np.asarray(nib.load(path).dataobj) for path in (written, images[0]))
    mask = np.asarray(nib.load(here / f"masks/{rows[0][0]}.nii.gz").dataobj) == 2
    ends = [np.flatnonzero(mask.any(axis=others))[[0, -1]] for others in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(max(low - 1, 0), high + 2) for low, high in ends)
    outside_box = np.ones(image.shape, dtype=bool)
    outside_box[box] = False
    assert found.shape == image.shape and found[box].any() and not found[outside_box].any()


@pytest.mark.parametrize(
    "data, said",
    [
        ({"region_labels": ["liver"]}, "knows no liver; it knows shell, core"),
        ({"region_labels": [1]}, "told by names"),
        ({"region_from": "label_map", "region_labels": ["core"]}, "told by values"),
        ({"region_from": None}, "exactly when"),
        ({"region_from": "nowhere.safetensors"}, "no file"),
    ],
)
def test_a_region_that_cannot_be_is_refused(clinseg, trained, here, data, said):
    manifest = write_phantom_classes(trained, here / "classes.csv")
    own = {"region_from": str(trained.model)} | data
    config = write_config(here, manifest, data=own, preprocessing={"region": "crop"})
    answer = clinseg("train", config)
    assert answer.code == 2 and said in answer.err
