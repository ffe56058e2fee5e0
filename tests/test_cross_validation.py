"""A cross-validation is its folds, one table and one model, however often it is interrupted."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import chdir
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.checkpoint import read_checkpoint
from pipeline.data.synthetic import write_phantom_study
from pipeline.inference.metric_table import read_table
from pipeline.workflows.cross_validation import train_folds

CONFIG = Path(__file__).parents[1] / "configs/smoke/hippocampus.yaml"
BEST = "checkpoints/best.safetensors"


def overrides(trained):
    settings = {
        "data.manifest": trained.manifest,
        "data.cache_dir": trained.folder / "cache",
        "data.num_folds": 2,
        "preprocessing.normalisation": "dataset",  # of each fold its own
        "training.deterministic": "true",
        "training.epochs": 2,
        "training.steps_per_epoch": 10,
        "training.validate_every": 1,
        "training.learning_rate": 0.02,
        "training.patch_size": "[16, 16, 16]",
        "network.features": "[4, 8]",
        "tracking.experiment": "folds",
        "tracking.overlays": 0,
    }
    return [f"{name}={value}" for name, value in settings.items()]


def make_store(trained, folder):
    """MLflow's database takes seconds to make: that of another run will do."""
    (folder / "mlruns").mkdir()
    shutil.copy(trained.folder / "mlruns/mlflow.db", folder / "mlruns")
    return folder


@pytest.fixture(scope="module", autouse=True)
def deterministic():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def straight(trained, tmp_path_factory):
    """The folder of an uninterrupted cross-validation, and what came of it."""
    folder = make_store(trained, tmp_path_factory.mktemp("straight"))
    with chdir(folder):
        return folder, train_folds(CONFIG, [*overrides(trained), "data.fold=all"])


def children_of(run):
    return [run.with_name(f"{run.name}-fold{number}") for number in range(2)]


def test_every_case_is_validated_once_and_told_as_evaluate_tells_it(clinseg, straight, trained, tmp_path):
    _, result = straight
    splits = [json.loads((child / "split.json").read_text()) for child in children_of(result.folder)]
    validated = [case for split in splits for case in split["validation"]]
    assert len(validated) == len(set(validated)) == 5
    masks = tmp_path / "masks"
    masks.mkdir()
    for child in children_of(result.folder):
        for path in (child / "validation").iterdir():
            shutil.copy(path, masks)
    table = tmp_path / "metrics.csv"
    assert clinseg("evaluate", masks, trained.manifest.parent / "labelsTr", "-o", table).code == 0
    assert (result.folder / "cases.csv").read_text() == table.read_text()


def test_mlflow_has_a_run_with_the_folds_nested_in_it(straight):
    folder, result = straight
    assert all(delivery.is_complete for delivery in result.deliveries)
    with sqlite3.connect(folder / "mlruns/mlflow.db") as database:
        ids = dict(database.execute("SELECT name, run_uuid FROM runs"))
        query = "SELECT run_uuid, value FROM tags WHERE key = 'mlflow.parentRunId'"
        parents = dict(database.execute(query))
        query = "SELECT key, value FROM latest_metrics WHERE run_uuid = ?"
        metrics = dict(database.execute(query, [ids[result.run]]))
    database.close()
    assert parents == {ids[child.name]: ids[result.run] for child in children_of(result.folder)}
    dice = [row.values["dice"] for row in read_table(result.folder / "cases.csv")]
    assert metrics["best/dice/mean"] == pytest.approx(np.mean(dice))
    assert metrics["best_low/dice/mean"] < metrics["best/dice/mean"] < metrics["best_high/dice/mean"]
    assert metrics["components_before/dice/core"] == pytest.approx(metrics["best/dice/core"])
    (model,) = folder.glob(f"mlruns/artifacts/{ids[result.run]}/artifacts/model/*")
    assert model.read_bytes() == (result.folder / BEST).read_bytes()


def probabilities_of(clinseg, model, image, folder):
    assert clinseg("predict", model, image, "-o", folder, "--probabilities").code == 0
    (path,) = (folder / "probabilities").iterdir()
    return np.asarray(nib.load(path).dataobj, dtype=np.float64)


def test_the_model_of_all_folds_predicts_the_mean_of_their_logits(
    clinseg, straight, trained, tmp_path, monkeypatch
):
    folder, result = straight
    monkeypatch.chdir(folder)
    image = next(iter(sorted((trained.manifest.parent / "imagesTr").iterdir())))
    each = [
        probabilities_of(clinseg, child.name, image, tmp_path / child.name)
        for child in children_of(result.folder)
    ]
    assert not np.allclose(*each, atol=1e-3)
    product = np.prod(each, axis=0) ** (1 / len(each))  # of probabilities, for logits are their logarithms
    expected = product / product.sum(-1, keepdims=True)
    for name in ("latest", result.run, result.folder / BEST):
        found = probabilities_of(clinseg, name, image, tmp_path / f"by {Path(name).name}")
        assert np.allclose(found, expected, atol=1e-5)


def test_a_fold_alone_is_trained_as_in_the_cross_validation(
    clinseg, straight, trained, tmp_path, monkeypatch
):
    monkeypatch.chdir(make_store(trained, tmp_path))
    options = [f"--set={override}" for override in overrides(trained)]
    assert clinseg("train", CONFIG, *options, "--fold", 1).code == 0
    (run,) = (tmp_path / "mlruns/runs").iterdir()
    alone, child = read_checkpoint(run / BEST), children_of(straight[1].folder)[1]
    assert_same(alone.weights, read_checkpoint(child / BEST).weights)
    assert (run / "cases.csv").read_text() == (child / "cases.csv").read_text()


def assert_same(weights, others):
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def wait_for(pattern, folder, process=None):
    deadline = time.monotonic() + 600  # a loaded machine takes its time
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"there never was {pattern}"
        assert process is None or process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_in_the_second_fold_and_resumed_it_ends_with_the_same_model(
    clinseg, straight, trained, tmp_path, monkeypatch
):
    make_store(trained, tmp_path)
    command = [sys.executable, "-m", "pipeline", "train", str(CONFIG), "--fold", "all"]
    command += [f"--set={override}" for override in overrides(trained)]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        wait_for("mlruns/runs/*-fold1/checkpoints/last.safetensors", tmp_path, process)
        process.kill()
    monkeypatch.chdir(tmp_path)
    (first,) = tmp_path.glob("mlruns/runs/*-fold0")
    before = (first / "events.jsonl").read_bytes()
    answer = clinseg("train", "--resume", "latest")
    assert answer.code == 0, answer.err
    assert (first / "events.jsonl").read_bytes() == before  # what was finished was left alone
    parent = first.with_name(first.name.removesuffix("-fold0"))
    found = read_checkpoint(parent / BEST)
    expected = read_checkpoint(straight[1].folder / BEST)
    for got, wanted in zip(found.members, expected.members, strict=True):
        assert_same(got.weights, wanted.weights)
        assert got.intensity == wanted.intensity
    assert found.members[0].intensity != found.members[1].intensity
    assert found.job == expected.job and found.job["data"]["fold"] == "all"
    assert (parent / "cases.csv").read_text() == (straight[1].folder / "cases.csv").read_text()


def test_folds_of_other_data_are_not_joined(clinseg, straight, trained, tmp_path, monkeypatch):
    folder, result = straight
    shutil.copytree(folder / "mlruns/runs", tmp_path / "mlruns/runs")
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(children_of(tmp_path / "mlruns/runs" / result.run)[1])
    label, other = sorted((trained.manifest.parent / "labelsTr").iterdir())[:2]
    original = label.read_bytes()
    try:
        label.write_bytes(other.read_bytes())
        answer = clinseg("train", "--resume", "latest")
    finally:
        label.write_bytes(original)
    assert (answer.code, "data-changed" in answer.err) == (6, True)


def test_what_would_stop_a_later_fold_is_told_before_the_first_is_trained(
    clinseg, trained, tmp_path, monkeypatch
):
    """A structure that was drawn in cases of one fold alone has nobody to learn from while it is held out."""
    monkeypatch.chdir(tmp_path)
    write_phantom_study(tmp_path, num_cases=4, shape=(16, 16, 16))
    rows = ["case,image,label,fold"]
    for number in range(1, 5):
        label = tmp_path / f"labelsTr/phantom_0{number}.nii.gz"
        rows.append(f"c{number},imagesTr/{label.name},labelsTr/{label.name},{number % 2}")
        if number % 2:
            drawn = nib.load(label)
            nib.save(nib.Nifti1Image(np.minimum(drawn.get_fdata(), 1).astype(np.uint8), drawn.affine), label)
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    settings = [
        *overrides(trained),
        f"data.manifest={tmp_path}/cases.csv",
        "data.labels={background: 0, shell: 1, core: 2}",
        "data.absent_means_unlabelled=[core]",
    ]
    answer = clinseg("train", CONFIG, "--fold", "all", *(part for one in settings for part in ("--set", one)))
    assert (answer.code, "core: it is labelled in no training case" in answer.err) == (3, True)
    assert not (tmp_path / "mlruns/runs").exists()


def test_a_signal_in_a_fold_ends_the_whole_and_says_how_to_go_on(clinseg, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(make_store(trained, tmp_path))

    def stop():
        wait_for("mlruns/runs/*-fold0/split.json", tmp_path)
        os.kill(os.getpid(), signal.SIGTERM)

    stopping = threading.Thread(target=stop)
    stopping.start()
    options = [f"--set={override}" for override in overrides(trained)]
    answer = clinseg("train", CONFIG, *options, "--fold", "all", "--set", "training.epochs=1000")
    stopping.join()
    assert answer.code == 75
    (child,) = tmp_path.glob("mlruns/runs/*-fold0")
    parent = child.name.removesuffix("-fold0")
    assert f"stopped; go on with: clinseg train --resume {parent}\n" in answer.err
    assert not (child.with_name(f"{parent}-fold1")).exists()
    listed = clinseg("runs").out.splitlines()
    assert all("killed" in line for line in listed if parent in line) and parent in listed[-1]
