"""A sweep is its trials, one table and one winner, however often it is interrupted."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.config import load_job, parse_space
from pipeline.errors import ConfigError, Stopped
from pipeline.tracking import find_run, list_runs, read_status
from pipeline.workflows.sweeping import sweep
from pipeline.workflows.sweeps.course import Course, Request, begin_sweep
from pipeline.workflows.sweeps.suggesting import Outcome, build_pruner, suggest

CONFIG = Path(__file__).parents[2] / "configs/smoke/hippocampus.yaml"
RATES = Request(ranges=("training.learning_rate=1e-3..1e-1:log",), num_trials=3)

STRIDES = ("network.features=[4,8],[4,8,8,8]", "training.patch_size=[16,16,16],[20,20,20]")
"""Each value is fine by itself; the second ones of both contradict each other."""


@pytest.fixture(scope="module", autouse=True)
def deterministic():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def settings(trained, tmp_path, monkeypatch):
    """Overrides for trials of a second, in a store whose database is there already."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy(trained.folder / "mlruns/mlflow.db", tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    values = {
        "data.manifest": trained.manifest,
        "data.cache_dir": trained.folder / "cache",
        "training.deterministic": "true",
        "training.epochs": 1,
        "training.steps_per_epoch": 5,
        "training.validate_every": 1,
        "training.patch_size": "[16, 16, 16]",
        "network.features": "[4, 8]",
        "tracking.experiment": "sweep",
        "tracking.overlays": 0,
    }
    return [f"{name}={value}" for name, value in values.items()]


def as_options(settings):
    return [f"--set={setting}" for setting in settings]


def test_every_combination_is_a_run_and_the_best_leaves_its_config(clinseg, settings):
    grid = [
        "--set-grid",
        "training.learning_rate=0.02,1e-05",
        "--set-grid",
        "network.attention_gates=true,false",
    ]
    answer = clinseg("sweep", CONFIG, *grid, *as_options(settings), "-o", "best.yaml")
    assert answer.code == 0, answer.err
    parent = find_run("latest")
    with (parent.path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["training.learning_rate"], row["network.attention_gates"]) for row in rows] == [
        ("0.02", "true"),
        ("0.02", "false"),
        ("1e-05", "true"),
        ("1e-05", "false"),
    ]
    runs = {run.name: run for run in list_runs()}
    for row in rows:
        run = runs[row["run"]]
        assert float(row["dice/mean"]) == pytest.approx(run.best["dice/mean"], abs=1e-5)
        job = load_job(parent.path.with_name(run.name) / "config.yaml")
        assert job.training.learning_rate == float(row["training.learning_rate"])
        assert json.dumps(job.network.attention_gates) == row["network.attention_gates"]
    winner = max(rows, key=lambda row: float(row["dice/mean"]))
    assert runs[parent.name].best["dice/mean"] == pytest.approx(float(winner["dice/mean"]), abs=1e-5)
    assert load_job(Path("best.yaml")) == load_job(parent.path.with_name(winner["run"]) / "config.yaml")
    assert winner["run"] in answer.out and "looks better than it is" in answer.out
    again = clinseg("train", "--resume", parent.name)
    assert again.code == 2 and f"clinseg sweep --resume {parent.name}" in again.err


def test_what_no_setting_takes_is_told_before_anything_is_trained(clinseg, settings, tmp_path):
    space = [
        "--set-grid",
        "training.optimizer=muon,bogus",
        "--set-range",
        "network.dropout=0..7",
        "--trials",
        "2",
    ]
    answer = clinseg("sweep", CONFIG, *space, *as_options(settings))
    assert answer.code == 2
    assert "bogus" in answer.err and "network.dropout" in answer.err
    assert clinseg("sweep", CONFIG, "--set-range", "network.dropout=0..0.5").code == 2
    assert clinseg("sweep", CONFIG, "--set-grid", "data.fold=0,1").code == 2
    assert not (tmp_path / "mlruns/runs").exists()


@pytest.mark.parametrize(
    ("choices", "more", "told"),
    [
        (STRIDES, [], "total stride (8, 8, 8)"),
        (("training.learning_rate=0.1,0.2",), ["data.fold=none"], "data.fold"),
        (("augmentation.from_enhancer=null,some-run",), [], "cannot be swept"),
        (("training.start_from=null,some-run",), [], "some-run"),
    ],
    ids=["contradiction", "no-validation", "twins", "no-such-model"],
)
def test_a_grid_that_would_end_in_its_midst_is_not_begun(settings, tmp_path, choices, more, told):
    with pytest.raises(ConfigError) as refused:
        begin_sweep(CONFIG, Request(choices), [*settings, *more])
    assert told in str(refused.value)
    assert not (tmp_path / "mlruns/runs").exists()


def test_models_are_named_for_good_before_there_is_a_newer_run(trained, settings, tmp_path):
    shutil.copytree(trained.run, tmp_path / "mlruns/runs" / trained.run.name)
    request = Request(("training.start_from=null,latest", "network.features=[8, 16],[8, 16, 16]"))
    record, course = begin_sweep(CONFIG, request, settings)
    record.close("KILLED")
    assert find_run("latest").name == record.name
    assert Course.read(record.folder) == course
    assert course.request.space().choices == {
        "training.start_from": ("null", trained.run.name),
        "network.features": ("[8, 16]", "[8, 16, 16]"),
    }


@pytest.mark.slow
def test_a_draw_that_contradicts_itself_has_failed_and_the_others_go_on(settings):
    # By this seed both second values are drawn first, then both first ones.
    result = sweep(CONFIG, Request(STRIDES, num_trials=2), [*settings, "training.seed=3"])
    contradiction, fine = result.trials
    assert [*contradiction.settings.values()] == ["[4,8,8,8]", "[20,20,20]"]
    assert contradiction.score is None and "total stride" in contradiction.ending
    assert fine.score is not None and result.winner == fine


@pytest.mark.slow
def test_a_trial_that_diverges_has_failed_and_the_others_go_on(settings):
    result = sweep(CONFIG, Request(choices=("training.learning_rate=1e+30,0.02",)), settings)
    diverged, fine = result.trials
    assert diverged.score is None and "diverged" in diverged.ending
    assert fine.score is not None and result.winner == fine
    assert not list((find_run(diverged.run).path / "checkpoints").glob("*"))


@pytest.mark.slow
def test_interrupted_between_trials_it_ends_as_without(settings):
    def stop(number, total, tried):
        if number == 2:
            raise Stopped

    straight = sweep(CONFIG, RATES, settings)
    with pytest.raises(Stopped, match=r"clinseg sweep --resume sweep-"):
        sweep(CONFIG, RATES, settings, on_trial=stop)
    resumed = sweep(None, Request(), resume="latest")
    assert resumed.run != straight.run
    assert [(trial.settings, trial.score) for trial in resumed.trials] == [
        (trial.settings, trial.score) for trial in straight.trials
    ]
    assert len({trial.settings["training.learning_rate"] for trial in straight.trials}) == 3


@pytest.mark.slow
def test_a_trial_killed_in_its_midst_is_gone_on_with(settings, tmp_path):
    result = sweep(CONFIG, RATES, settings)
    last = tmp_path / "mlruns/runs" / result.trials[-1].run
    events = (last / "events.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in events if '"FINISHED"' not in line]
    (last / "events.jsonl").write_text("".join(kept))
    assert read_status(find_run(last.name)) == "RUNNING"
    resumed = sweep(None, Request(), resume=result.run)
    assert read_status(find_run(last.name)) == "FINISHED"
    assert [(trial.run, trial.settings, trial.score) for trial in resumed.trials] == [
        (trial.run, trial.settings, trial.score) for trial in result.trials
    ]


def test_a_trial_behind_the_median_of_five_is_given_up():
    space = parse_space([], ["x=0..1"])
    outcomes = [Outcome({"x": "0"}, 0.5 + n / 10, {1: 0.2 + n / 10, 2: 0.5 + n / 10}) for n in range(5)]
    is_hopeless = build_pruner(space, {"x": "1"}, outcomes)
    assert not is_hopeless(0.41, 1)  # the median is 0.4
    assert is_hopeless(0.45, 2)
    assert not build_pruner(space, {"x": "1"}, outcomes[:4])(0.0, 1)


def test_draws_come_closer_to_what_was_good():
    space = parse_space(["kind=a,b"], ["x=0.0..1.0"])
    outcomes: list[Outcome] = []
    for number in range(25):
        settings = suggest(space, number, outcomes)
        assert settings["kind"] in ("a", "b") and 0 <= float(settings["x"]) <= 1
        score = (settings["kind"] == "b") - abs(float(settings["x"]) - 0.8)
        outcomes.append(Outcome(settings, score, {}))
    late = [float(outcome.settings["x"]) for outcome in outcomes[-8:]]
    assert sum(abs(x - 0.8) < 0.25 for x in late) >= 6
    assert suggest(space, 3, outcomes[:3]) == dict(outcomes[3].settings)
