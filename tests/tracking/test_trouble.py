"""A real server that goes, hangs, refuses and loses answers: nobody waits, nothing is lost or doubled."""

import shutil
import threading
import time
from contextlib import closing
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.tracking import deliver, start_record
from pipeline.tracking.store import connect

pytestmark = pytest.mark.slow
TROUBLES = ("answers", "wants a password", "answers", "loses answers", "closes", "hangs", "answers")


class _Between(BaseHTTPRequestHandler):
    """Hands requests on to MLflow, as long as `server.mode` says that all is well."""

    protocol_version = "HTTP/1.0"

    def _hand_on(self):
        mode = self.server.mode
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if mode == "wants a password":
            self.send_error(401)
        elif mode == "hangs":
            self.server.is_over.wait(60)
        if mode not in ("answers", "loses answers"):
            return
        headers = {name: value for name, value in self.headers.items() if name not in ("Connection", "Host")}
        with closing(HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)) as connection:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        if mode == "loses answers":  # MLflow has it, and nobody learns so
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _hand_on  # noqa: N815 - names that http.server gives

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def between(empty_database, tmp_path_factory, mlflow_server):
    """What stands between a training and a real server."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    with (
        mlflow_server(f"sqlite:///{folder}/mlflow.db", folder) as upstream,
        ThreadingHTTPServer(("127.0.0.1", 0), _Between) as server,
    ):
        server.daemon_threads = True
        server.upstream, server.mode = upstream, "answers"
        server.is_over = threading.Event()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.is_over.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("at_start", "at_end"), [("answers", "wants a password"), ("hangs", "loses answers")]
)
def test_a_record_survives_every_trouble_and_has_each_point_once(between, store, at_start, at_end):
    uri = f"http://127.0.0.1:{between.server_port}"
    between.is_over.clear()
    between.mode = at_start
    longest, num_steps = 0.0, 0
    record = start_record(at_start, uri, "segmentation")
    (record.folder / "a.txt").write_text("whole")
    for mode in TROUBLES:
        between.mode = mode
        for _ in range(8):
            began = time.perf_counter()
            record.log_metrics({"loss": 1 / (num_steps + 1), "dice": float(num_steps)}, num_steps)
            longest, num_steps = max(longest, time.perf_counter() - began), num_steps + 1
            time.sleep(0.25)
        record.log_artifact(record.folder / "a.txt", mode.replace(" ", "-"))
    between.mode = at_end
    record.close("FINISHED", timeout_s=2)
    assert (
        longest < 1.0
    )  # microseconds, but for a machine that has much else to do; a server's patience is 5 s

    between.mode = "answers"
    between.is_over.set()
    deadline = time.monotonic() + 200
    for thread in threading.enumerate():  # the process would have ended by now, and with it what still tries
        if thread.name == "tracking":
            thread.join(60)
    while not (delivery := deliver(record.run)).is_complete and time.monotonic() < deadline:
        time.sleep(1)
    assert (delivery.undelivered, delivery.refused) == (0, ())
    client = connect(uri)
    for name in "loss", "dice":
        points = client.get_metric_history(delivery.run_id, name)
        assert sorted(point.step for point in points) == list(range(num_steps))
    experiment = client.get_experiment_by_name(at_start)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        mode.replace(" ", "-") for mode in TROUBLES
    }
