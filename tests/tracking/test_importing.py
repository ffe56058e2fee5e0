"""Runs and models that MLflow 1.30.0 and 2.9.2 kept as files (`file-store/`, made by them) come, and once."""

import math
import shutil
from pathlib import Path

import mlflow.artifacts
import pytest

from pipeline.errors import ConfigError
from pipeline.tracking import import_runs

OLD = Path(__file__).parent / "file-store/mlruns"
REGISTERED = Path(__file__).parent / "file-store/registered"


def _runs(client):
    experiment = client.get_experiment_by_name("prostate")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_runs_come_with_points_texts_files_parents_and_ends(store, client, points):
    done = import_runs(OLD)
    assert (set(done.imported), done.num_known) == ({"baseline", "fold 0", "broken"}, 0)
    assert (done.models, done.left) == ((), ())
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


def test_registered_models_come_with_versions_texts_files_and_aliases(store, client, tmp_path):
    done = import_runs(REGISTERED)
    assert done.models == ("prostate/1", "prostate/3", "prostate/4")
    (left,) = done.left
    assert left.startswith("elsewhere/1: ") and "/data/elsewhere/model" in left
    (model,) = client.search_registered_models()
    assert (model.name, model.tags, model.description) == (
        "prostate",
        {"organ": "prostate"},
        "Of the whole gland",
    )
    # The second was deleted, so numbers follow; of two in production the newer counts.
    assert model.aliases == {"champion": 1, "production": 2, "staging": 3}
    versions = {int(v.version): v for v in client.search_model_versions("name = 'prostate'")}
    assert {n: v.tags["clinseg.imported_from"] for n, v in versions.items()} == {1: "1", 2: "3", 3: "4"}
    assert {v.tags["clinseg.stage"] for v in versions.values()} == {"Production", "Staging"}
    assert (versions[2].description, versions[2].tags["reader"]) == ("three", "AB")
    runs = _runs(client)
    for number, name in (1, "first"), (2, "second"), (3, "first"):
        assert versions[number].run_id == runs[name].info.run_id
        place = client.get_model_version_download_uri("prostate", str(number))
        assert place.startswith((store / "artifacts").as_uri())
        folder = mlflow.artifacts.download_artifacts(artifact_uri=place, dst_path=str(tmp_path / str(number)))
        assert (Path(folder) / "weights.txt").read_text() == name


def test_a_second_import_doubles_no_version_and_moves_no_alias(store, client):
    import_runs(REGISTERED)
    client.set_registered_model_alias("prostate", "champion", "3")
    again = import_runs(REGISTERED)
    assert (again.models, len(again.left)) == ((), 1)
    assert len(client.search_model_versions("name = 'prostate'")) == 3
    assert client.get_registered_model("prostate").aliases["champion"] == 3


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
