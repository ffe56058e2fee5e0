"""A fresh MLflow database takes seconds: it is made once and copied for every test."""

import os
import shutil
from pathlib import Path

import pytest

from pipeline.tracking.store import connect

os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "5"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def store(empty_database, tmp_path, monkeypatch) -> Path:
    """The current directory's `mlruns`, with an empty database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mlruns"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


@pytest.fixture
def client(store):
    return connect(f"sqlite:///{store / 'mlflow.db'}")


@pytest.fixture
def points(client):
    """All (step, value) of a metric that MLflow holds, doubles included."""

    def of(run_id: str, name: str) -> list[tuple[int, float]]:
        return sorted((p.step, p.value) for p in client.get_metric_history(run_id, name))

    return of
