"""A training that is killed or stopped at any moment ends as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from pipeline.config import job_to_mapping, load_job
from pipeline.data.synthetic import write_phantom_study
from pipeline.networks import build_network

CONFIG = Path(__file__).parents[1] / "configs/smoke/hippocampus.yaml"
SETTINGS = {
    "training.deterministic": "true",
    "training.epochs": "4",
    "training.steps_per_epoch": "6",
    "training.ema_decay": "0.9",
    "training.validate_every": "1",
    "training.patch_size": "[16, 16, 16]",
    "network.features": "[4, 8]",
    "network.dropout": "0.2",
    "augmentation.noise_probability": "0.5",
    "tracking.overlays": "0",
    # A fine-tuning has all the state that a training from scratch has, and more.
    "training.optimizer": "muon",
    "training.freeze_encoder": "0.5",
    "training.gradual_unfreezing": "true",
    "training.depth_decay": "0.8",
}
MODEL = "model.safetensors"


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory, empty_database):
    manifest = write_phantom_study(tmp_path_factory.mktemp("phantoms"), num_cases=5)
    write_model(manifest.parent / MODEL)
    shutil.copy(empty_database, manifest.parent / "mlflow.db")
    return manifest


def write_model(path):
    """A model to start from with one level more and another name for a label: part of it fits."""
    job = load_job(CONFIG, ["network.features=[4, 8, 8]"])
    torch.manual_seed(9)
    checkpoint = Checkpoint(
        weights=build_network(job.network, 1, 3).state_dict(),
        job=job_to_mapping(job),
        labels={"background": 0, "rind": 1, "core": 2},
        structures={"rind": (1,), "core": (2,)},
        channels=("any",),
        intensity=None,
        provenance={},
    )
    write_checkpoint(path, checkpoint)


def options(folder, study):
    """What a new training is told; MLflow's database, which takes seconds to make, is there."""
    (folder / "mlruns").mkdir(parents=True)
    shutil.copy(study.parent / "mlflow.db", folder / "mlruns")
    settings = SETTINGS | {"data.manifest": study, "data.cache_dir": study.parent / "cache"}
    settings["training.start_from"] = shutil.copy(study.parent / MODEL, folder / MODEL)
    return [str(CONFIG), *(f"--set={name}={value}" for name, value in settings.items())]


def start(folder, study, *arguments):
    command = [sys.executable, "-m", "pipeline", "train"]
    if "--resume" not in arguments:
        command += options(folder, study)
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen(
        [*command, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process, code=0):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output.decode()
    return output.decode()


def run_of(folder):
    (run,) = (folder / "mlruns/runs").iterdir()
    return run


def wait_for(process, folder, is_so):
    """Waits until the run's folder shows that training has come far enough."""
    deadline = time.monotonic() + 600  # a loaded machine takes its time
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0].decode()
        runs = folder / "mlruns/runs"
        if runs.is_dir() and any(is_so(run) for run in runs.iterdir()):
            return
        time.sleep(0.002)
    raise AssertionError("the training never came that far")


def weights_of(folder):
    checkpoint = read_checkpoint(run_of(folder) / "checkpoints/last.safetensors", with_state=True)
    return {**checkpoint.weights, **checkpoint.state["task"]["network"]}, checkpoint.state["position"]["step"]


@pytest.fixture(scope="module")
def uninterrupted(study, tmp_path_factory, clinseg_in):
    folder = tmp_path_factory.mktemp("straight")
    clinseg_in(folder, "train", *options(folder, study))
    torch.use_deterministic_algorithms(False)
    return weights_of(folder)


def has_finished_an_epoch(run):
    return (run / "checkpoints/last.safetensors").exists()


def test_resumed_equals_uninterrupted(study, uninterrupted, tmp_path):
    """Killed before its first checkpoint, killed in an epoch, stopped by a signal, then left to finish.

    The model that it started from is gone after the first kill.
    """
    process = start(tmp_path, study)
    wait_for(process, tmp_path, lambda run: (run / "config.yaml").exists())
    process.kill()
    finish(process, -signal.SIGKILL)
    (tmp_path / MODEL).unlink()

    process = start(tmp_path, study, "--resume", "latest")
    wait_for(process, tmp_path, has_finished_an_epoch)
    process.kill()
    finish(process, -signal.SIGKILL)

    written = (run_of(tmp_path) / "checkpoints/last.safetensors").stat().st_mtime_ns
    process = start(tmp_path, study, "--resume", "latest")
    wait_for(
        process,
        tmp_path,
        lambda run: (run / "checkpoints/last.safetensors").stat().st_mtime_ns != written,
    )
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=240)
    if process.returncode != 0:  # the signal may come when all is done
        assert process.returncode == 75, output.decode()
        assert f"clinseg train --resume {run_of(tmp_path).name}" in output.decode()
        finish(start(tmp_path, study, "--resume", "latest"))

    expected, num_steps = uninterrupted
    found, num_found = weights_of(tmp_path)
    assert num_found == num_steps == 24
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_resumed_run_refuses_another_config_and_other_data(study, tmp_path, clinseg, monkeypatch):
    process = start(tmp_path, study)
    wait_for(process, tmp_path, has_finished_an_epoch)
    process.kill()
    process.communicate()
    monkeypatch.chdir(tmp_path)
    answer = clinseg("train", "--resume", "latest", "--set", "training.seed=5")
    assert (answer.code, "config-changed" in answer.err) == (2, True)
    label = next((study.parent / "labelsTr").glob("*.nii.gz"))
    original = label.read_bytes()
    try:
        label.write_bytes(next(p for p in sorted(label.parent.glob("*.nii.gz")) if p != label).read_bytes())
        answer = clinseg("train", "--resume", "latest")
        assert (answer.code, "data-changed" in answer.err) == (6, True)
    finally:
        label.write_bytes(original)
