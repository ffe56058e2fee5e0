"""A classifier from its config to answers: trained, judged, applied and compared by the real commands."""

import json
import os
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from pipeline.calibration import Calibration
from pipeline.checkpoint import read_checkpoint, write_checkpoint
from pipeline.errors import Stopped
from pipeline.inference.class_table import read_class_table
from pipeline.workflows.cards import describe

SIDE = 16


def draw(kind, generator):
    """A disc or a ring somewhere, in noise."""
    centre = generator.uniform(5, SIDE - 5, 2)
    distance = np.hypot(*(np.indices((SIDE, SIDE)) - centre[:, None, None]))
    shape = distance < 4 if kind == 0 else (distance < 4.6) & (distance > 2.3)
    noise = generator.normal(60, 25, (SIDE, SIDE))
    return np.clip(noise + 120 * shape, 0, 255).astype(np.uint8)


def draw_all(num, seed):
    generator = np.random.default_rng(seed)
    kinds = generator.permutation(np.arange(num) % 3 == 0).astype(np.uint8)  # every third is a ring
    return np.stack([draw(kind, generator) for kind in kinds]), kinds[:, None]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("shapes") / "shapes.npz"
    (train, train_labels), (val, val_labels) = draw_all(90, 0), draw_all(30, 1)
    np.savez(path, train_images=train, train_labels=train_labels, val_images=val, val_labels=val_labels)
    return path


def write_config(folder, manifest, **sections):
    job = {
        "task": "classification",
        "data": {
            "manifest": str(manifest),
            "classes": ["disc", "ring"],
            "cache_dir": str(folder / "cache"),
        },
        "preprocessing": {"size": [SIDE, SIDE]},
        "network": {"dimensions": 2, "features": [8, 16], "dropout": 0.1},
        "training": {
            "epochs": 3,
            "steps_per_epoch": 12,
            "batch_size": 16,
            "learning_rate": 0.01,
            "ema_decay": 0.9,
            "device": "cpu",
            "deterministic": True,
            "mixup": 0.2,
        },
    }
    for name, changes in sections.items():
        job[name] = job.get(name, {}) | changes
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def latest(folder, part=""):
    runs = [run for run in (folder / "mlruns/runs").iterdir() if run.name.endswith(part)]
    return max(runs, key=lambda run: run.stat().st_mtime_ns)


def recorded(run):
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return {k: v for event in events if event["kind"] == "metrics" for k, v in event["values"].items()}


def test_train_predict_and_evaluate_tell_the_same(clinseg, archive, here):
    answer = clinseg("train", write_config(here, archive))
    assert answer.code == 0 and "sensitivity/ring" in answer.out
    run = latest(here)
    for name in ("cases.csv", "discrimination.png", "calibration.png", "curves.png"):
        assert (run / name).stat().st_size > 0
    assert len(list((run / "overlays").glob("*.png"))) == 3
    metrics = recorded(run)
    assert metrics["best/auc"] > 0.9
    assert f"{metrics['best/auc']:.4f}" in clinseg("runs").out
    checkpoint = read_checkpoint(run / "checkpoints/best.safetensors")
    calibration = Calibration.from_mapping(checkpoint.calibration)
    assert calibration.num_cases == 30 and 0 < calibration.thresholds[0] < 1

    assert clinseg("predict", "latest", f"{archive}#val", "-o", here / "out").code == 0
    found, judged = read_class_table(here / "out/predictions.csv"), read_class_table(run / "cases.csv")
    assert found.cases == tuple(str(n) for n in range(30))
    assert found.predicted == judged.predicted and np.array_equal(found.review, judged.review)
    np.testing.assert_array_equal(found.probabilities, judged.probabilities)
    assert 0 < found.review.sum() <= 3  # a tenth, as `coverage` says
    report = json.loads((here / "out/report.json").read_text())
    assert report["model_sha256"] == checkpoint.content_hash and len(report["cases"]) == 30

    answer = clinseg("evaluate", here / "out/predictions.csv", f"{archive}#val", "-o", here / "figures.csv")
    assert answer.code == 0 and "marked for review" in answer.out
    voxels = ("--config", here / "nowhere.yaml", "--ignore", 3)
    refused = clinseg("evaluate", here / "out/predictions.csv", f"{archive}#val", *voxels)
    assert refused.code == 2 and refused.err.count("contradiction") == 2
    with np.load(archive) as arrays:
        np.savez(here / "more.npz", test_labels=arrays["train_labels"], **arrays)
    unnamed = clinseg("evaluate", here / "out/predictions.csv", here / "more.npz")  # other rows' labels
    assert unnamed.code == 2 and "which-part" in unnamed.err and "more.npz#val" in unnamed.err
    with np.load(archive) as arrays:
        np.savez(here / "one.npz", val_labels=arrays["val_labels"][:-1])  # nothing to be taken for it
    missing = clinseg("evaluate", here / "out/predictions.csv", here / "one.npz")
    assert missing.code == 3 and "it has a prediction and no reference" in missing.err
    rows = [line.split(",") for line in (here / "figures.csv").read_text().splitlines()[1:]]
    assert {name: pytest.approx(float(value), abs=1e-5) for name, value, *_ in rows} == {
        name.removeprefix("best/"): value for name, value in metrics.items() if name.startswith("best/")
    }


def test_a_table_that_people_worked_on_is_evaluated_or_refused(clinseg, tmp_path):
    row = "{},{},0.{},0.{},no\r\n".format
    rows = [row(case, "ring" if case % 2 else "disc", 8 - case, 2 + case) for case in range(6)]
    table, truth, heading = tmp_path / "p.csv", tmp_path / "truth.csv", "case,predicted,probability_disc,"
    heading += "probability_ring,review\r\n"
    known = "case,class\n" + "".join(f"{case},{'ring' if case % 2 else 'disc'}\n" for case in range(6))
    truth.write_text(known)
    table.write_text(heading + "".join(rows) + "\r\n", encoding="utf-8-sig")  # as a spreadsheet leaves it
    answer = clinseg("evaluate", table, truth)
    assert answer.code == 0 and "6 predictions" in answer.out
    (tmp_path / "one.csv").write_text("case,class\n0,disc\n")
    clinseg("evaluate", table, tmp_path / "one.csv", "-o", tmp_path / "figures.csv")
    figures = dict(line.split(",", 1) for line in (tmp_path / "figures.csv").read_text().splitlines()[1:])
    assert figures["brier"] == "0.04,,"  # one case tells of no other
    (tmp_path / "report.json").write_text('{"calibration": {"multi_label": false}}')
    table.write_text(heading + rows[0].replace("disc", "") + rows[1].replace("ring", "ring;disc") + rows[2])
    answer = clinseg("evaluate", table, truth)
    assert answer.code == 3 and answer.err.count("not-one-answer") == 2
    for place in (truth, table):
        answer = clinseg("evaluate", table, truth, "-o", place)
        assert answer.code == 2 and "would-overwrite" in answer.err
    assert truth.read_text() == known


def test_a_table_of_answers_is_in_the_log_and_not_replaced_once_people_worked_on_it(
    clinseg, archive, here, monkeypatch
):
    assert clinseg("train", write_config(here, archive, training={"epochs": 1})).code == 0
    checkpoint = read_checkpoint(latest(here) / "checkpoints/best.safetensors")
    (threshold,) = checkpoint.calibration["thresholds"]
    assert f"answers ring from a probability of {threshold:.3g} on" in describe(checkpoint)
    told = describe(replace(checkpoint, calibration=None))
    assert "not calibrated, and it calls for no review" in told and "| inference.coverage | 0.9 |" in told
    command = "predict", "latest", f"{archive}#val", "-o", here / "out"
    table = here / "out/predictions.csv"
    for num in 30, 60:
        assert clinseg(*command).code == 0
        assert f"{num} entries are whole; 1 files" in clinseg("audit", "verify", here / "out").out
    edited = table.read_text().replace(",no\n", ",seen by a person\n")
    table.write_text(edited)
    answer = clinseg("audit", "verify", here / "out")
    assert answer.code == 6 and "output-changed" in answer.err and "predictions.csv" in answer.err
    answer = clinseg(*command)
    assert answer.code == 2 and "would-overwrite" in answer.err and table.read_text() == edited
    table.unlink()
    assert clinseg(*command).code == 0 and clinseg("audit", "verify", here / "out").code == 0

    # A table is on disk only when its log knows it, wherever the program ends: here at each flush to disk.
    np.savez(here / "two.npz", test_images=draw_all(2, 5)[0])
    flush, codes = os.fsync, []
    while 0 not in codes:
        left = iter(range(len(codes)))

        def stop(descriptor, left=left):
            if next(left, None) is None:
                raise Stopped
            flush(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", stop)
            answer = clinseg("predict", "latest", here / "two.npz", "-o", here / "stopped")
        codes.append(answer.code)
        assert answer.code in (0, 75), answer.err
        if (here / "stopped/predictions.csv").exists():
            assert clinseg("audit", "verify", here / "stopped").code == 0
    assert len(codes) > 6 and (here / "stopped/predictions.csv").exists()


def test_all_folds_make_one_calibrated_ensemble(clinseg, archive, here):
    config = write_config(here, archive, data={"split": "new", "num_folds": 2, "fold": "all"})
    config.write_text(
        config.read_text().replace(
            "manifest:", f"cache_dir: {here}/cache\n  classes: [disc, ring]\n  manifest:"
        )
    ) if "cache_dir" not in config.read_text() else None
    assert clinseg("train", config).code == 0
    run = min((here / "mlruns/runs").iterdir(), key=lambda path: len(path.name))
    checkpoint = read_checkpoint(run / "checkpoints/best.safetensors")
    assert len(checkpoint.members) == 2 and checkpoint.calibration["num_cases"] == 120
    assert len(read_class_table(run / "cases.csv").cases) == 120
    assert clinseg("predict", run.name, f"{archive}#val", "-o", here / "out").code == 0
    card = clinseg("card", run.name).out
    assert "Trained on 120 cases; 120 were each held out" in card and "Only 120 cases" in card
    assert "measured on single networks" in card and "applied to the mean of all 2" in card
    assert "measured on single networks" not in describe(replace(checkpoint, members=()))
    assert all(line.endswith("| 120 |") for line in card.splitlines() if line.startswith("| accuracy"))
    shutil.copy(run / "checkpoints/best.safetensors", here / "model.safetensors")
    (here / "mlruns").rename(here / "elsewhere")
    card = clinseg("card", here / "model.safetensors").out
    assert "record is not on this disk" in card and "Nothing was held out" not in card


def write_folders(folder, suffix):
    images, labels = draw_all(24, 2)
    for number, (image, label) in enumerate(zip(images, labels[:, 0], strict=True)):
        path = folder / ("disc", "ring")[label] / f"case{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".png":
            Image.fromarray(image).save(path)
        else:
            nib.save(nib.Nifti1Image(image[..., None], np.eye(4)), path)


@pytest.mark.parametrize("suffix", [".png", ".nii.gz"])
def test_folders_of_images_train_and_a_broken_one_costs_only_itself(clinseg, here, suffix):
    write_folders(here / "images", suffix)
    config = write_config(here, here / "images", training={"epochs": 1, "mixup": 0.0})
    job = yaml.safe_load(config.read_text())
    del job["training"]["deterministic"]
    job["training"] |= {"steps_per_epoch": 4, "batch_size": 8}
    job["data"] |= {"num_folds": 3}
    config.write_text(yaml.safe_dump(job))
    assert clinseg("check", config).code == 0
    assert clinseg("train", config).code == 0
    broken = next((here / "images/disc").iterdir())
    broken.write_bytes(broken.read_bytes()[:60])
    answer = clinseg("predict", "latest", here / "images", "-o", here / "out")
    assert answer.code == 3 and "23 of 24" in answer.out and broken.name.split(".")[0] in answer.err
    assert len(read_class_table(here / "out/predictions.csv").cases) == 23
    answer = clinseg("evaluate", here / "out/predictions.csv", here / "images")
    assert answer.code == 3 and "no prediction" in answer.err


def test_it_starts_from_the_encoder_of_a_segmentation(clinseg, trained, archive, here):
    job = read_checkpoint(trained.model).job["network"]
    size = [SIDE] * job["dimensions"]
    images, labels = draw_all(24, 3)
    volumes = np.repeat(images[..., None], SIDE, axis=3)
    np.savez(here / "v.npz", train_images=volumes, train_labels=labels, val_images=volumes, val_labels=labels)
    network = {key: job[key] for key in ("dimensions", "features", "strides", "kernels", "blocks")}
    config = write_config(
        here,
        here / "v.npz",
        preprocessing={"size": size},
        network={**network, "dropout": 0.0},
        training={"epochs": 1, "steps_per_epoch": 2, "batch_size": 4, "start_from": str(trained.model)},
    )
    answer = clinseg("train", config)
    assert answer.code == 0 and "tensors loaded" in answer.err
    taken = json.loads((latest(here) / "start_from.json").read_text())
    assert taken["loaded"] and all(name.startswith("encoder.") for name in taken["loaded"])


def test_it_starts_from_foreign_weights(clinseg, archive, here):
    network = {"name": "resnet18", "dimensions": 2}
    save_file({"conv1.weight": torch.randn(64, 3, 7, 7)}, here / "theirs.safetensors")
    config = write_config(
        here,
        archive,
        training={"epochs": 1, "steps_per_epoch": 1, "start_from": str(here / "theirs.safetensors")},
    )
    job = yaml.safe_load(config.read_text())
    job["network"] = network
    job["preprocessing"]["size"] = [32, 32]
    config.write_text(yaml.safe_dump(job))
    answer = clinseg("train", config)
    assert answer.code == 0, answer.err
    assert "adapted" in answer.err


@pytest.mark.parametrize("method", ["grad_cam", "occlusion"])
def test_answers_are_explained_on_the_images_own_grid(clinseg, here, method):
    write_folders(here / "images", ".nii.gz")
    config = write_config(
        here, here / "images", training={"epochs": 1, "steps_per_epoch": 2, "batch_size": 8}
    )
    assert clinseg("train", config).code == 0
    one = next((here / "images/ring").iterdir())
    assert clinseg("predict", "latest", one, "-o", here / "out", "--explain", method).code == 0
    (written,) = (here / "out/explanations").glob("*.nii.gz")
    image, found = nib.load(one), nib.load(written)
    assert found.shape == image.shape and np.array_equal(found.affine, image.affine)
    assert np.asarray(found.dataobj).std() > 0 and written.with_name(written.name[:-7] + ".png").is_file()
    other = next((here / "images/disc").iterdir())
    (here / "out/explanations/note.txt").write_text("of a person")
    assert clinseg("predict", "latest", other, "-o", here / "out").code == 0
    assert [path.name for path in (here / "out/explanations").iterdir()] == ["note.txt"]


def test_a_model_that_answers_no_numbers_is_told(clinseg, archive, here):
    assert clinseg("train", write_config(here, archive, training={"epochs": 1})).code == 0
    model = here / "broken.safetensors"
    checkpoint = read_checkpoint(latest(here) / "checkpoints/best.safetensors")
    checkpoint.weights["classifier.weight"].fill_(float("nan"))
    write_checkpoint(model, checkpoint)
    answer = clinseg("predict", model, f"{archive}#val", "-o", here / "out")
    assert answer.code == 6 and "not numbers" in answer.err and not (here / "out/predictions.csv").exists()


def test_what_is_for_segmentation_is_refused(clinseg, archive, here):
    assert clinseg("train", write_config(here, archive, training={"epochs": 1})).code == 0
    answer = clinseg("predict", "latest", f"{archive}#val", "-o", here / "out", "--compile", "--resume")
    assert answer.code == 2 and answer.err.count("this model is a classifier") == 2
    assert not (here / "out").exists()


def test_the_same_image_on_both_sides_is_told(clinseg, here):
    images, labels = draw_all(24, 4)
    np.savez(
        here / "x.npz", train_images=images, train_labels=labels, val_images=images[:2], val_labels=labels[:2]
    )
    answer = clinseg("check", write_config(here, here / "x.npz"))
    assert answer.code == 0 and "val-0" in answer.err and "2 warnings" in answer.out


def test_an_image_too_small_for_the_network_is_refused(clinseg, archive, here):
    config = write_config(
        here, archive, network={"features": [4, 8, 16, 32, 64]}, preprocessing={"size": [16, 16]}
    )
    answer = clinseg("train", config)
    assert answer.code == 2 and "preprocessing.size" in answer.err


@pytest.mark.slow
def test_answers_leave_as_dicom_reports(clinseg, archive, here):
    from pydicom import dcmread

    from pipeline.data.synthetic.series import write_series
    from pipeline.volume import Grid, Volume

    images, labels = draw_all(24, 3)
    volumes = np.repeat(images[..., None], 4, axis=3)
    np.savez(here / "v.npz", train_images=volumes, train_labels=labels, val_images=volumes, val_labels=labels)
    size = [SIDE, SIDE, 4]
    network = {"dimensions": 3, "strides": [[1, 1, 1], [2, 2, 2]]}
    config = write_config(here, here / "v.npz", preprocessing={"size": size}, network=network,
                          training={"epochs": 1, "steps_per_epoch": 2, "batch_size": 4})  # fmt: skip
    assert clinseg("train", config).code == 0
    grid = Grid((SIDE, SIDE, 4), np.eye(4))
    write_series(here / "scan", Volume(np.ascontiguousarray(volumes[0].astype(np.int16)), grid))
    answer = clinseg("predict", "latest", here / "scan", "-o", here / "out", "--also", "dicom-sr")
    assert answer.code == 0, answer.err
    (told,) = json.loads((here / "out/report.json").read_text())["cases"]
    report = dcmread(here / "out/dicom-sr/scan.dcm")
    items, numbers, coded = [report], {}, {}
    for item in items:
        items.extend(item.get("ContentSequence") or ())
        name = item.ConceptNameCodeSequence[0].CodeMeaning if "ConceptNameCodeSequence" in item else ""
        if item.get("ValueType") == "NUM":
            numbers[name] = float(item.MeasuredValueSequence[0].NumericValue)
        elif item.get("ValueType") == "CODE":
            coded[name] = item.ConceptCodeSequence[0].CodeMeaning
    shares = [numbers[f"Probability of {name}"] for name in ("disc", "ring")]
    assert shares == pytest.approx(told["probabilities"], rel=1e-6)
    assert coded["Predicted class"] == told["predicted"][0]
    assert coded["Review by a person advised"] == ("Yes" if told["review"] else "No")
    assert clinseg("audit", "verify", here / "out").code == 0
    answer = clinseg("predict", "latest", here / "scan", "-o", here / "b", "--also", "dicom-sr,dicom-seg")
    assert answer.code == 2 and "--also" in answer.err
    assert clinseg("predict", "latest", here / "scan", "-o", here / "out").code == 0
    assert not (here / "out/dicom-sr/scan.dcm").exists()
