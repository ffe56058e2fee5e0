"""The pages come up on loopback, show what was recorded, take records themselves, and end when told."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import psutil
import pytest

from pipeline.errors import ConfigError
from pipeline.tracking import fetch_model, serve_ui, start_record

# What a shell starts in the background, as a script does with the tests, would not hear Ctrl-C.
_SERVE = """
import signal, sys
from pipeline.tracking import serve_ui
signal.signal(signal.SIGINT, signal.default_int_handler)
serve_ui(int(sys.argv[1]))
"""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(empty_database, tmp_path_factory):
    """A folder with a store, and the address and process of its pages."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_database, folder / "mlruns/mlflow.db")
    with serving(folder, lambda port: [sys.executable, "-c", _SERVE, str(port)]) as (address, process):
        yield folder, address, process


@contextmanager
def serving(folder, build_command):
    """Address and process of a server that was started in a folder and is up."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(build_command(port), cwd=folder, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, process)
        yield address, process
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_for(address, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if _get(f"{address}/health") == b"OK":
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    pytest.fail("the server did not come up")


def _get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()


def _record(uri, monkeypatch, folder):
    monkeypatch.chdir(folder)
    record = start_record("shown", uri, "segmentation")
    (record.folder / "best.safetensors").write_bytes(b"weights")
    record.log_parameters({"epochs": "3"})
    for step, value in enumerate((0.5, 1 / 3, float("nan"), float("inf"))):
        record.log_metrics({"dice/tumour (core)": value}, step)
    record.log_artifact(record.folder / "best.safetensors", "model")
    delivery = record.close("FINISHED", timeout_s=120)
    assert (delivery.undelivered, delivery.refused) == (0, ())
    return delivery.run_id


def test_the_pages_show_runs_and_artifacts_of_the_store(server, monkeypatch):
    folder, address, _ = server
    run_id = _record(None, monkeypatch, folder)
    assert b"MLflow" in _get(address)
    run = json.loads(_get(f"{address}/api/2.0/mlflow/runs/get?run_id={run_id}"))["run"]
    assert run["info"]["status"] == "FINISHED"
    artifact = f"{address}/get-artifact?path=model/best.safetensors&run_uuid={run_id}"
    assert _get(artifact) == b"weights"


def test_a_moved_store_shows_its_files_and_its_charts(empty_database, tmp_path, monkeypatch):
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_database, tmp_path / "mlruns/mlflow.db")
    run_id = _record(None, monkeypatch, tmp_path)
    home = tmp_path / "moved here"
    home.mkdir()
    (tmp_path / "mlruns").rename(home / "mlruns")
    with serving(home, lambda port: [sys.executable, "-m", "pipeline", "ui", "--port", str(port)]) as (
        address,
        process,
    ):
        assert _get(f"{address}/get-artifact?path=model/best.safetensors&run_uuid={run_id}") == b"weights"
        listed = json.loads(_get(f"{address}/ajax-api/2.0/mlflow/artifacts/list?run_id={run_id}&path=model"))
        assert [file["path"] for file in listed["files"]] == ["model/best.safetensors"]
        experiment = json.loads(
            _get(f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name=shown")
        )["experiment"]["experiment_id"]
        page = (
            f"{address}/#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART"
        )
        deadline = time.monotonic() + 60
        while page not in (home / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert page in (home / "log").read_text()
        # Nothing is told to MLflow's makers, by the server or by its pages, and no process is idle.
        assert json.loads(_get(f"{address}/ajax-api/3.0/mlflow/ui-telemetry"))["disable_ui_telemetry"] is True
        assert len(psutil.Process(process.pid).children(recursive=True)) <= 2


def test_a_server_takes_the_same_record_as_a_database(server, monkeypatch, tmp_path):
    _, address, _ = server
    run_id = _record(address, monkeypatch, tmp_path)
    url = (
        f"{address}/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key=dice%2Ftumour%20_28core_29"
    )
    points = json.loads(_get(url))["metrics"]
    values = {point["step"]: float(point["value"]) for point in points}
    assert len(points) == 4
    assert (values[0], values[1]) == (0.5, 1 / 3)
    assert math.isnan(values[2])
    assert fetch_model(run_id, uri=address).read_bytes() == b"weights"


def test_only_this_machine_is_listened_to(server):
    _, address, process = server
    port = int(address.rpartition(":")[2])
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    listening = [
        connection.laddr
        for member in family
        for connection in psutil.Process(member.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert [tuple(where) for where in listening] == [("127.0.0.1", port)]


def test_a_busy_port_and_a_server_uri_are_refused(server, tmp_path):
    _, address, _ = server
    port = int(address.rpartition(":")[2])
    for bad in (port, 70_000, -1):
        with pytest.raises(ConfigError, match="cannot be used"):
            serve_ui(bad, tmp_path)
    with pytest.raises(ConfigError, match="open this address in a browser"):
        serve_ui(0, tmp_path, uri=address)


def test_ctrl_c_ends_it_with_all_its_processes(server):
    _, _, process = server
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 0
    assert psutil.wait_procs(family, timeout=60)[1] == []
