"""MLflow's own pages, on this machine only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, Fault, ServiceError, Stopped
from pipeline.tracking.runs import STORE, read_runs
from pipeline.tracking.store import connect
from pipeline.tracking.uris import is_server, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_HOST = "127.0.0.1"  # MLflow asks nobody for a password, so it listens to this machine only
_PATIENCE_S = 10.0
_SETTINGS = {
    # Of ten processes and 1 GB this leaves two and 0.5 GB.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


def serve_ui(
    port: int = 5000,
    store: Path = STORE,
    uri: str | None = None,
    on_ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Shows the runs at `http://127.0.0.1:<port>` until Ctrl-C, or until the caller's `Stopped`.

    Args:
        port: TCP port on the loopback interface.
        store: Folder of runs, database and artifacts.
        uri: Configured tracking URI; None takes `MLFLOW_TRACKING_URI`, else the database in `store`.
        on_ready: Is told, once the pages can be seen, where the newest run's experiment draws its curves.

    Raises:
        ConfigError: If the port is not free, or the URI is that of a server, which shows itself.
        ServiceError: If MLflow's server ends by itself.
    """
    address = tracking_uri(uri, store)
    if is_server(address):
        message = "the runs are on a server, which shows them itself: open this address in a browser"
        raise ConfigError(Fault(address, "tracking-server", message))
    _check_free(port)
    # Makes a missing database here, under the lock, and not in a race with a training.
    page = _charts_page(connect(address), store)
    with _server(_command(address, port, store)) as process:
        try:
            if _comes_up(process, port):
                on_ready(f"http://{_HOST}:{port}/{page}")
            code = process.wait()
        except (KeyboardInterrupt, Stopped):
            return
    raise ServiceError(
        Fault("mlflow", "server-ended", f"its server ended by itself with code {code}; see above")
    )


def _charts_page(client: MlflowClient, store: Path) -> str:
    """The page that draws the curves of all runs of an experiment over each other."""
    name = next((run.experiment for run in read_runs(store)), None)
    experiment = client.get_experiment_by_name(name) if name is not None else None
    path = "experiments" if experiment is None else f"experiments/{experiment.experiment_id}/runs"
    # Without the type MLflow asks whether this is about machine learning or about agents.
    return f"#/{path}?workflowType=machine_learning&compareRunsMode=CHART"


def _comes_up(process: subprocess.Popen[bytes], port: int) -> bool:
    """Waits until the pages can be seen; False if the server ended instead."""
    while process.poll() is None:
        connection = HTTPConnection(_HOST, port, timeout=_PATIENCE_S)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == HTTPStatus.OK:
                return True
        except (OSError, HTTPException):
            time.sleep(0.2)
        finally:
            connection.close()
    return False


def _command(address: str, port: int, store: Path) -> list[str]:
    artifacts = str(store.resolve() / "artifacts")
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", _HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", address, "--artifacts-destination", artifacts),
    ]


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError) as error:
            reason = str(getattr(error, "strerror", None) or error).lower()
            message = f"port {port} cannot be used ({reason}); choose another, such as --port {port + 1}"
            raise ConfigError(Fault("--port", "port-busy", message)) from error


@contextmanager
def _server(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, so that it and its workers end together and only when we say so."""
    process = subprocess.Popen(  # noqa: S603 - a list of our own words, no shell
        command, env=os.environ | _SETTINGS, start_new_session=True
    )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return
        return
