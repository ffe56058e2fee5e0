"""Runs that MLflow 1.30.0 wrote as files (`file-store/`, made by it) become runs of a database, once."""

import math
import shutil
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.tracking import import_runs

OLD = Path(__file__).parent / "file-store/mlruns"


def _runs(client):
    experiment = client.get_experiment_by_name("prostate")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_runs_come_with_points_texts_files_parents_and_ends(store, client, points):
    done = import_runs(OLD)
    assert (set(done.imported), done.num_known, done.num_models) == ({"baseline", "fold 0", "broken"}, 0, 0)
    runs = _runs(client)
    baseline = runs["baseline"]
    assert baseline.data.params == {"lr": "0.01", "loss": "dice + ce"}
    assert baseline.data.tags["note"] == "zwei\nZeilen"
    values = points(baseline.info.run_id, "val/dice")
    assert values[:5] == [(step, 0.5 + step / 10) for step in range(5)]
    assert len(values) == 6 and math.isnan(values[5][1])
    assert (baseline.info.start_time, baseline.info.end_time) == (1795861207374, 1795861207510)
    assert {run.info.run_name: run.info.status for run in runs.values()} == {
        "baseline": "FINISHED",
        "fold 0": "FINISHED",
        "broken": "FAILED",
    }
    assert runs["fold 0"].data.tags["mlflow.parentRunId"] == baseline.info.run_id
    assert baseline.info.artifact_uri.startswith((store / "artifacts").as_uri())
    assert (store / "artifacts" / baseline.info.run_id / "artifacts/model/best.txt").read_text() == "weights"


def test_a_second_import_doubles_nothing_and_completes_what_was_cut_off(store, client, points):
    import_runs(OLD)
    broken = _runs(client)["broken"].info.run_id
    client.delete_tag(broken, "clinseg.imported")  # as a kill would have left it
    again = import_runs(OLD)
    assert (again.imported, again.num_known) == (("broken",), 2)
    runs = _runs(client)
    assert len(runs) == 3 and runs["broken"].info.run_id != broken
    assert len(points(runs["baseline"].info.run_id, "val/dice")) == 6


def test_the_folder_is_only_read(store, client, tmp_path):
    copy = tmp_path / "old"
    shutil.copytree(OLD, copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    import_runs(copy)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_what_is_no_such_folder_is_refused(store, tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="an older MLflow kept its runs as files"):
            import_runs(folder)
