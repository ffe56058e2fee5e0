"""A store that was moved or copied goes on as if it had always lain there."""

import json
import shutil
import sqlite3

import pytest

from pipeline.tracking import deliver, fetch_model, find_run, start_record
from pipeline.tracking.store import connect


def _record(experiment="moved"):
    record = start_record(experiment, None, "segmentation")
    (record.folder / "best.safetensors").write_bytes(b"weights")
    record.log_artifact(record.folder / "best.safetensors", "model")
    delivery = record.close("FINISHED")
    assert delivery.is_complete
    return delivery.run, delivery.run_id


def _connect(store):
    return connect(f"sqlite:///{store}/mlflow.db")


def _register(client, run_id):
    run = client.get_run(run_id)
    model = client.create_logged_model(run.info.experiment_id, "model", run_id)
    client.create_registered_model("hippo")
    source = f"{run.info.artifact_uri}/model"
    client.create_model_version("hippo", source, run_id, model_id=model.model_id)
    return model.model_id


@pytest.mark.parametrize("is_copied", [False, True])
def test_artifacts_and_models_are_found_where_the_store_is_now(
    store, client, tmp_path, monkeypatch, is_copied
):
    _, run_id = _record()
    model_id = _register(client, run_id)
    home = tmp_path / "another place"
    home.mkdir()
    (shutil.copytree if is_copied else shutil.move)(store, home / "mlruns")
    monkeypatch.chdir(home)

    assert fetch_model("models:/hippo/1").read_bytes() == b"weights"
    assert fetch_model(run_id).read_bytes() == b"weights"
    moved = _connect(home / "mlruns")
    artifacts = (home / "mlruns/artifacts").as_uri()
    assert moved.get_experiment_by_name("moved").artifact_location == artifacts
    assert moved.get_logged_model(model_id).artifact_location.startswith(f"{artifacts}/")
    _, later = _record()
    assert moved.get_run(later).info.artifact_uri == f"{artifacts}/{later}/artifacts"
    assert store.exists() is is_copied


def test_what_was_put_elsewhere_on_purpose_stays(store, client, tmp_path):
    (store / "artifacts").mkdir()
    (tmp_path / "big/artifacts").mkdir(parents=True)
    for name, location in (
        ("big disk", (tmp_path / "big/artifacts").as_uri()),
        ("gone", (tmp_path / "gone/files").as_uri()),
        ("server", "mlflow-artifacts:/artifacts"),
    ):
        client.create_experiment(name, artifact_location=location)
        assert _connect(store).get_experiment_by_name(name).artifact_location == location


def test_a_folder_whose_name_begins_alike_is_left_alone(store, client, tmp_path):
    (store / "artifacts").mkdir()
    client.create_experiment("old", artifact_location=(tmp_path / "old/artifacts").as_uri())
    alike = (tmp_path / "old/artifacts2").as_uri()
    client.create_experiment("alike", artifact_location=alike)
    moved = _connect(store)
    assert moved.get_experiment_by_name("old").artifact_location == (store / "artifacts").as_uri()
    assert moved.get_experiment_by_name("alike").artifact_location == alike


def test_a_run_is_delivered_to_the_database_beside_it(store, client, tmp_path, monkeypatch):
    name, run_id = _record()
    facts = json.loads((store / "runs" / name / "run.json").read_text())
    assert facts["uri"] is None
    # As earlier versions wrote it.
    facts["uri"] = f"sqlite:///{store}/mlflow.db"
    (store / "runs" / name / "run.json").write_text(json.dumps(facts))
    home = tmp_path / "elsewhere/mlruns"
    home.parent.mkdir()
    store.rename(home)
    monkeypatch.chdir(home.parent)
    run = find_run(name)
    assert run.uri == f"sqlite:///{home}/mlflow.db"
    (run.path / "delivery.json").unlink()
    delivery = deliver(run)
    assert (delivery.run_id, delivery.undelivered) == (run_id, 0)
    assert not (store / "mlflow.db").exists()


def test_nothing_is_written_to_a_store_that_did_not_move(store, client):
    _record()
    connect(f"sqlite:///{store}/mlflow.db")
    with sqlite3.connect(store / "mlflow.db") as database:
        (before,) = database.execute("PRAGMA data_version").fetchone()
        connect(f"sqlite:///{store}/mlflow.db")
        (after,) = database.execute("PRAGMA data_version").fetchone()
    assert before == after
