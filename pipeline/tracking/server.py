"""MLflow's own pages, on this machine only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ConfigError, Fault, ServiceError, Stopped
from pipeline.tracking.runs import STORE
from pipeline.tracking.store import connect, is_server, tracking_uri

_HOST = "127.0.0.1"  # MLflow asks nobody for a password, so it listens to this machine only
_PATIENCE_S = 10.0
_SETTINGS = {
    # Of ten processes and 1 GB this leaves two and 0.5 GB.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


def serve_ui(port: int = 5000, store: Path = STORE, uri: str | None = None) -> None:
    """Shows the runs at `http://127.0.0.1:<port>` until Ctrl-C, or until the caller's `Stopped`.

    Args:
        port: TCP port on the loopback interface.
        store: Folder of runs, database and artifacts.
        uri: Configured tracking URI; None takes `MLFLOW_TRACKING_URI`, else the database in `store`.

    Raises:
        ConfigError: If the port is not free, or the URI is that of a server, which shows itself.
        ServiceError: If MLflow's server ends by itself.
    """
    address = tracking_uri(uri, store)
    if is_server(address):
        message = "the runs are on a server, which shows them itself: open this address in a browser"
        raise ConfigError(Fault(address, "tracking-server", message))
    _check_free(port)
    connect(address)  # makes a missing database here, under the lock, and not in a race with a training
    with _server(_command(address, port, store)) as process:
        try:
            code = process.wait()
        except (KeyboardInterrupt, Stopped):
            return
    raise ServiceError(
        Fault("mlflow", "server-ended", f"its server ended by itself with code {code}; see above")
    )


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
