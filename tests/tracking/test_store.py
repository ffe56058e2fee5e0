"""Which tracking URI is taken, and what MLflow is told before it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.tracking import tracking_uri


@pytest.fixture(autouse=True)
def plain_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_config_comes_before_the_environment_and_both_before_the_store(tmp_path, monkeypatch):
    assert tracking_uri(None) == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert tracking_uri(None, Path("elsewhere")) == f"sqlite:///{tmp_path}/elsewhere/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:5000")
    assert tracking_uri(None) == "http://environment:5000"
    assert tracking_uri("https://config/mlflow") == "https://config/mlflow"


def test_a_relative_database_is_the_same_from_everywhere(tmp_path):
    assert tracking_uri("sqlite:///a/b.db?timeout=9") == f"sqlite:///{tmp_path}/a/b.db?timeout=9"
    assert tracking_uri("sqlite:////a/b.db") == "sqlite:////a/b.db"
    assert tracking_uri("postgresql+psycopg://me@host/db") == "postgresql+psycopg://me@host/db"


@pytest.mark.parametrize(
    "uri", ["mlruns", "./mlruns", "/abs/mlruns", "file:///abs/mlruns", "ftp://x", "databricks"]
)
@pytest.mark.parametrize("is_configured", [True, False])
def test_what_mlflow_no_longer_takes_is_refused_and_says_where_it_stands(uri, is_configured, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError) as caught:
        tracking_uri(uri if is_configured else None)
    (fault,) = caught.value.faults
    assert fault.rule == "tracking-uri"
    assert fault.where == ("tracking.uri" if is_configured else "MLFLOW_TRACKING_URI")
    assert "sqlite:///" in fault.message


@pytest.mark.parametrize("uri", ["https://me:hunter2@host/", "postgresql://me:hunter2@host/db"])
def test_a_password_is_neither_taken_nor_repeated(uri):
    with pytest.raises(ConfigError, match="password") as caught:
        tracking_uri(uri)
    assert "hunter2" not in str(caught.value)


def test_mlflow_is_told_not_to_report_and_the_users_own_settings_stay():
    code = (
        "import os; from pipeline.tracking.store import prepare_mlflow; prepare_mlflow();"
        "from mlflow.environment_variables import *;"
        "print(MLFLOW_DISABLE_TELEMETRY.get(), MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(),"
        " MLFLOW_HTTP_REQUEST_TIMEOUT.get())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "7"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True 1 7"
