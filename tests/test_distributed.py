"""torchrun's processes train one network; one that is killed ends them all, and the run goes on."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.data.synthetic import write_phantom_study
from pipeline.tracking import list_runs, read_metrics
from pipeline.tracking.events import read_events
from pipeline.tracking.runs import find_run

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "training.epochs": 3,
    "training.steps_per_epoch": 6,
    "training.ema_decay": 0.9,
    "training.mixed_precision": "false",  # sums in another order differ by less then
    "training.validate_every": 1,
    "training.patch_size": "[16, 16, 16]",
    "network.features": "[4, 8]",
    "tracking.overlays": 0,
}


def settings_for(study, batch_size):
    folder = study.parent.parent
    paths = {"data.manifest": study, "data.cache_dir": folder / "cache"}
    settings = SETTINGS | paths | {"training.batch_size": batch_size}
    config = str(ROOT / "configs/smoke/hippocampus.yaml")
    return [config, *(f"--set={name}={value}" for name, value in settings.items())]


def start(folder, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "pipeline", "train", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def kill_the_second(process, folder):
    """Kills it as soon as an epoch is done."""
    deadline = time.monotonic() + 600  # a loaded machine takes its time
    while not any((folder / "mlruns").glob("runs/*/checkpoints/last.safetensors")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    (second,) = (p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == "1")
    second.kill()


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_phantom_study(tmp_path_factory.mktemp("phantoms") / "study", num_cases=5)


def test_two_train_as_one_with_twice_the_batch_though_one_of_them_is_killed(
    study, tmp_path, clinseg, monkeypatch, empty_database
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_database, tmp_path / "mlruns/mlflow.db")
    process = start(tmp_path, *settings_for(study, batch_size=2))
    kill_the_second(process, tmp_path)
    output, _ = process.communicate(timeout=600)
    (run,) = list_runs()
    assert process.returncode == 1 and run.status == "KILLED"
    assert f"-m pipeline train --resume {run.name}" in output
    assert str(ROOT / "pipeline") not in output, "a traceback of ours"

    refused = clinseg("train", "--resume", "latest")
    assert refused.code == 2 and "processes-changed" in refused.err

    process = start(tmp_path, "--resume", "latest")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert output.count("clinseg ui") == 1, "more than one told of it"
    together = find_run("latest")
    statuses = [event.values["status"] for event, _ in read_events(together.events) if event.kind == "status"]
    assert statuses == ["RUNNING", "KILLED", "RUNNING", "FINISHED"]

    assert clinseg("train", *settings_for(study, batch_size=4)).code == 0
    alone = find_run("latest")
    assert alone != together and len(list_runs()) == 2
    for name in "training/loss", "validation/dice/shell", "best/dice/shell":
        expected = [(step, pytest.approx(value, rel=0.01)) for step, value in read_metrics(alone)[name]]
        assert read_metrics(together)[name] == expected


def test_two_train_every_fold_and_go_on_with_the_whole_when_one_was_killed(
    study, tmp_path, clinseg, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folds = ["--fold=all", "--set=data.num_folds=2", "--set=training.epochs=2"]
    process = start(tmp_path, *settings_for(study, batch_size=2), *folds)
    kill_the_second(process, tmp_path)
    output, _ = process.communicate(timeout=600)
    (whole,) = (run for run in list_runs() if run.status == "KILLED" and "fold" not in run.name)
    assert process.returncode == 1
    assert output.count("go on with") == output.count(f"-m pipeline train --resume {whole.name}") == 1

    process = start(tmp_path, "--resume", "latest")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert {run.name.removeprefix(whole.name): run.status for run in list_runs()} == {
        "": "FINISHED", "-fold0": "FINISHED", "-fold1": "FINISHED"
    }  # fmt: skip

    assert clinseg("train", *settings_for(study, batch_size=4), *folds).code == 0
    alone = find_run("latest")
    assert alone.name != whole.name
    together = read_metrics(find_run(whole.name))["best/dice/shell"]
    assert together == [(2, pytest.approx(read_metrics(alone)["best/dice/shell"][0][1], rel=0.01))]


def test_a_dry_run_of_several_is_refused_once_and_leaves_nothing(study, tmp_path):
    process = start(tmp_path, *settings_for(study, batch_size=2), "--dry-run")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert output.count("several-processes") == 1 and "error: --dry-run: 2 processes" in output
    assert str(ROOT / "pipeline") not in output, "a traceback of ours"
    assert not list(tmp_path.iterdir())
