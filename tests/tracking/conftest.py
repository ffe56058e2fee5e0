"""A store for every test, and servers as a team has them."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from pipeline.tracking.store import connect

os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "5"


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


@pytest.fixture(scope="session")
def mlflow_server():
    """Starts `mlflow server` as a team would, and ends it: `with mlflow_server(database, folder) as port`."""

    @contextmanager
    def serve(database, folder, *options):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", database, "--artifacts-destination", str(folder / "files")]
        command += options
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, env=os.environ | settings, stdout=log, stderr=log)
        try:
            _wait_for(port, process)
            yield port
        finally:
            process.terminate()
            process.wait(timeout=60)

    return serve


def _wait_for(port, process):
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            try:
                connection.request("GET", "/health")
                if connection.getresponse().read() == b"OK":
                    return
            except OSError:
                time.sleep(0.2)
    pytest.fail("the server did not come up")
