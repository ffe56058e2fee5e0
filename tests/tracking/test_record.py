"""A run written to disk arrives in MLflow, exactly, whatever happens on the way."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.tracking import deliver, find_run, list_runs, resume_record, start_child, start_record
from pipeline.tracking.runs import DeliveryNote, read_note, write_note
from pipeline.tracking.store import connect


@pytest.fixture
def outage(store):
    """A database that cannot be had until `outage.unlink()`."""
    obstacle = store / "elsewhere"
    obstacle.write_text("a file where the folder should be")
    return obstacle


def _away(outage):
    return f"sqlite:///{outage / 'mlflow.db'}"


def _log_epochs(record, epochs):
    for step in epochs:
        record.log_metrics({"loss": 1 / (step + 1), "validation/dice": step / 7}, step)


def test_mlflow_gets_exactly_what_was_noted(store, client, points):
    record = start_record("hippo", None, "segmentation")
    (record.folder / "model").mkdir()
    (record.folder / "model/best.safetensors").write_bytes(b"weights")
    record.log_parameters({f"section.p{n}": str(n) for n in range(250)} | {"long": "x" * 5_999})
    record.set_tags({"note": "first"})
    record.set_tags({"note": "second"})
    _log_epochs(record, range(700))
    record.log_metrics({f"case/{n}": n / 3 for n in range(1_500)}, 700)
    record.log_artifact(record.folder / "model/best.safetensors", "model")
    delivery = record.close("FINISHED")

    assert (delivery.undelivered, delivery.refused, delivery.problem) == (0, (), None)
    run = client.get_run(delivery.run_id)
    assert (run.info.status, run.info.run_name, run.info.user_id) == ("FINISHED", record.name, "unknown")
    assert run.data.params == {f"section.p{n}": str(n) for n in range(250)} | {"long": "x" * 5_999}
    assert run.data.tags["note"] == "second"
    assert run.data.tags["clinseg.task"] == "segmentation"
    assert points(delivery.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(700)]
    assert run.data.metrics["case/1499"] == 1499 / 3
    assert client.get_experiment(run.info.experiment_id).artifact_location == (store / "artifacts").as_uri()
    folder = client.download_artifacts(delivery.run_id, "model", str(store))
    assert [path.name for path in Path(folder).iterdir()] == ["best.safetensors"]
    (summary,) = list_runs()
    assert (summary.status, summary.undelivered) == ("FINISHED", 0)


def test_numbers_and_names_that_mlflow_dislikes_do_not_stop_the_others(store, client, points):
    record = start_record("odd", None, "segmentation")
    record.log_metrics({"nan": float("nan"), "inf": float("inf"), "fine": 1.0}, 0)
    record.log_metrics({"dice/tumour (T1<2)": 0.1, "dice/tumour (T1>2)": 0.2, "x" * 300: 0.3}, 0)
    record.log_metrics({"after": 2.0}, 1)
    delivery = record.close("FAILED")
    assert delivery.undelivered == 0
    assert len(delivery.refused) == 1
    assert delivery.refused[0].startswith("metric xxx")
    metrics = client.get_run(delivery.run_id).data.metrics
    assert metrics["nan"] != metrics["nan"]
    assert metrics["inf"] > 1e308
    assert metrics["dice/tumour _28T1_3c2_29"] == 0.1
    assert metrics["dice/tumour _28T1_3e2_29"] == 0.2
    assert (metrics["fine"], metrics["after"]) == (1.0, 2.0)
    assert client.get_run(delivery.run_id).info.status == "FAILED"


def test_a_resumed_run_goes_on_in_mlflow_with_each_point_once(store, client, points):
    record = start_record("resume", None, "segmentation")
    record.log_parameters({"epochs": "10", "seed": "0"})
    _log_epochs(record, range(10))
    first = record.close("KILLED")
    assert client.get_run(first.run_id).info.status == "KILLED"

    again = resume_record(record.run)
    with pytest.raises(ConfigError, match="another process"):
        resume_record(record.run)
    with pytest.raises(ConfigError, match="another process"):
        deliver(record.run)
    again.log_parameters({"epochs": "20", "seed": "0"})
    _log_epochs(again, range(6, 20))  # the checkpoint was at step 6
    second = again.close("FINISHED")
    run = client.get_run(second.run_id)
    assert second.run_id == first.run_id
    assert run.info.status == "FINISHED"
    assert points(first.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(20)]
    assert (run.data.params["epochs"], run.data.tags["changed.epochs"]) == ("10", "20")
    assert "changed.seed" not in run.data.tags


def test_what_an_outage_held_back_is_delivered_later(store, outage, empty_database):
    record = start_record("outage", _away(outage), "segmentation")
    (record.folder / "overlay.png").write_bytes(b"png")
    _log_epochs(record, range(5))
    record.log_artifact(record.folder / "overlay.png")
    delivery = record.close("FINISHED")
    held_back = len(record.run.events.read_bytes().splitlines())
    assert delivery.undelivered == held_back
    assert not delivery.is_complete
    assert str(outage) in delivery.problem
    assert deliver(record.run).undelivered == held_back
    assert list_runs()[0].undelivered == held_back

    outage.unlink()
    outage.mkdir()
    shutil.copy(empty_database, outage / "mlflow.db")
    done = deliver(record.run)
    assert (done.undelivered, done.problem) == (0, None)
    client = connect(_away(outage))
    run = client.get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(done.run_id, "loss")) == 5
    assert [file.path for file in client.list_artifacts(done.run_id)] == ["overlay.png"]


@pytest.mark.parametrize("forgets_id", [True, False])
@pytest.mark.parametrize("noted", [0, 40])
def test_a_crash_between_delivery_and_noting_doubles_nothing(store, client, points, noted, forgets_id):
    record = start_record("crash", None, "segmentation")
    for epoch in range(3):
        # A point written again with another time is no exact copy, which MLflow itself would drop.
        _log_epochs(record, range(epoch * 400, (epoch + 1) * 400))
    run_id = record.close("FINISHED").run_id
    lines = record.run.events.read_bytes().splitlines(keepends=True)
    later = [line.replace(b'"time":1', b'"time":2') if b"metrics" in line else line for line in lines]
    record.run.events.write_bytes(b"".join(later))
    offset = sum(map(len, lines[:noted]))
    write_note(record.run, DeliveryNote(None if forgets_id else run_id, offset))
    done = deliver(record.run)
    assert (done.run_id, done.undelivered) == (run_id, 0)
    assert points(run_id, "loss") == [(step, 1 / (step + 1)) for step in range(1200)]


def test_a_run_that_mlflow_lost_is_made_anew(store, client, empty_database, points):
    record = start_record("lost", None, "segmentation")
    _log_epochs(record, range(3))
    lost = record.close("FINISHED").run_id
    client.delete_run(lost)
    with sqlite3.connect(store / "mlflow.db") as database:  # what `mlflow gc` does
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (lost,))
    database.close()
    done = deliver(record.run)
    assert done.run_id != lost
    assert done.undelivered == 0
    assert [step for step, _ in points(done.run_id, "loss")] == [0, 1, 2]


@pytest.mark.parametrize("deleted", ["run", "experiment"])
def test_what_was_deleted_in_mlflow_is_not_brought_back_unasked(store, client, deleted):
    record = start_record("deleted", None, "segmentation")
    first = record.close("KILLED")
    experiment_id = client.get_run(first.run_id).info.experiment_id
    if deleted == "run":
        client.delete_run(first.run_id)
        again, held_back = resume_record(record.run), 3
    else:
        client.delete_experiment(experiment_id)
        again, held_back = start_record("deleted", None, "segmentation"), None
    again.log_metrics({"loss": 1.0}, 0)
    delivery = again.close("FINISHED")
    assert "was deleted; restore it" in delivery.problem
    assert delivery.undelivered == held_back or (held_back is None and delivery.undelivered > 3)
    if deleted == "run":
        client.restore_run(first.run_id)
    else:
        client.restore_experiment(experiment_id)
    assert deliver(again.run).is_complete


def test_a_run_deleted_while_it_is_written_keeps_the_rest_for_its_return(store, client, points):
    record = start_record("vanishing", None, "segmentation")
    deadline = time.monotonic() + 60
    while read_note(record.run).offset == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    run_id = read_note(record.run).run_id
    client.delete_run(run_id)
    _log_epochs(record, range(5))
    delivery = record.close("FINISHED")
    assert delivery.undelivered >= 6
    assert delivery.refused == ()
    client.restore_run(run_id)
    assert deliver(record.run).is_complete
    assert len(points(run_id, "loss")) == 5


def test_a_part_of_a_run_is_nested_in_it_even_if_delivered_long_after(store, client, outage, empty_database):
    parent = start_record("folds", _away(outage), "segmentation")
    child = start_child(parent.run, "fold0")
    assert child.name == f"{parent.name}-fold0"
    assert child.close("FINISHED").undelivered > 0
    parent.close("FINISHED")
    outage.unlink()
    outage.mkdir()
    shutil.copy(empty_database, outage / "mlflow.db")
    early = deliver(child.run)
    assert early.run_id is None and f"clinseg sync {parent.name}" in early.problem

    parent_id = deliver(parent.run).run_id
    done = deliver(child.run)
    assert done.is_complete
    run = connect(_away(outage)).get_run(done.run_id)
    assert (run.info.run_name, run.data.tags["mlflow.parentRunId"]) == (child.name, parent_id)
    assert run.data.tags["clinseg.task"] == "segmentation"

    write_note(parent.run, DeliveryNote("f" * 32))  # as if MLflow had lost the parent, which was made anew
    write_note(child.run, DeliveryNote(done.run_id))
    again = deliver(child.run)
    run = connect(_away(outage)).get_run(again.run_id)
    assert (again.run_id, run.data.tags["mlflow.parentRunId"]) == (done.run_id, "f" * 32)

    shutil.rmtree(parent.folder)
    assert deliver(child.run).is_complete  # it stands alone now


def test_an_artifact_stays_inside_its_run(store, tmp_path):
    record = start_record("inside", None, "segmentation")
    secret = tmp_path / "secret"
    secret.write_text("x")
    (record.folder / "link").symlink_to(secret)
    for path in (secret, record.folder / "link", record.folder / "../../../secret", record.folder / "absent"):
        with pytest.raises(ValueError, match="an artifact is a file in"):
            record.log_artifact(path)
    inside = record.folder / "inside"
    inside.write_text("x")
    record.log_artifact(inside)
    inside.unlink()
    inside.symlink_to(secret)  # exchanged before it was delivered, or a log that somebody else wrote
    write_note(record.run, DeliveryNote())
    record.close("FINISHED")
    write_note(record.run, DeliveryNote())
    assert deliver(record.run).refused == ("artifact inside: there is no such file in the run's folder",)


def test_runs_may_lie_on_another_disk_than_their_store(store, client, tmp_path):
    (tmp_path / "big disk").mkdir()
    (store / "runs").symlink_to(tmp_path / "big disk")
    record = start_record("linked", None, "segmentation")
    inside = record.folder / "model/best.safetensors"
    inside.parent.mkdir()
    inside.write_text("weights")
    record.log_artifact(inside, "model")
    with pytest.raises(ValueError, match="an artifact is a file in"):
        record.log_artifact(store / "mlflow.db")
    delivery = record.close("FINISHED")
    assert (delivery.is_complete, delivery.refused) == (True, ())
    (arrived,) = client.list_artifacts(delivery.run_id, "model")
    assert arrived.path == "model/best.safetensors"
    assert find_run(record.name).path.resolve().parent == tmp_path / "big disk"


_KILLED = """
import sys
from pipeline.tracking import start_record
record = start_record("killed", None, "segmentation")
print(record.name, flush=True)
step = 0
while True:
    record.log_metrics({"loss": float(step)}, step)
    step += 1
"""


def test_kill_9_loses_no_line_and_is_told_from_running(store, client, points):
    with subprocess.Popen([sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, text=True) as process:
        name = process.stdout.readline().strip()
        deadline = time.monotonic() + 30
        while (
            store / "runs" / name / "events.jsonl"
        ).stat().st_size < 100_000 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list_runs()[0].status == "RUNNING"
        process.kill()
    (summary,) = list_runs()
    assert (summary.name, summary.status) == (name, "interrupted")
    run = find_run(name)
    with run.events.open("ab") as file:
        file.truncate(50_000)  # as if it had been killed earlier, in the middle of a line
    write_note(run, DeliveryNote(read_note(run).run_id))
    done = deliver(run)
    assert client.get_run(done.run_id).info.status == "KILLED"
    delivered = points(done.run_id, "loss")
    assert delivered[:100] == [(step, float(step)) for step in range(100)]

    again = resume_record(run)
    last = delivered[-1][0]
    for step in range(last - 5, last + 3):
        again.log_metrics({"loss": float(step)}, step)
    delivery = again.close("FINISHED")
    assert client.get_run(delivery.run_id).info.status == "FINISHED"
    assert points(done.run_id, "loss") == [(step, float(step)) for step in range(last + 3)]


_HUNG = """
import sys, time
from pipeline.tracking import start_record
record = start_record("hung", sys.argv[1], "segmentation")
began = time.perf_counter()
for step in range(2_000):
    record.log_metrics({"loss": 1.0}, step)
noted = time.perf_counter() - began
began = time.perf_counter()
delivery = record.close("FINISHED", timeout_s=0.5)
print(noted, time.perf_counter() - began, delivery.undelivered, delivery.problem, sep=";")
sys.stdout.flush()
"""


def test_a_server_that_never_answers_holds_up_neither_training_nor_exit(store):
    environment = os.environ | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [sys.executable, "-c", _HUNG, f"http://127.0.0.1:{silent.getsockname()[1]}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            noted, closed, undelivered, problem = process.stdout.readline().strip().split(";")
            ended = time.monotonic()
            assert process.wait(timeout=60) == 0
    # The server would hold a caller for 60 s; a busy machine is given some seconds.
    assert float(noted) < 5.0
    assert 0.5 <= float(closed) < 10.0
    assert time.monotonic() - ended < 20.0
    assert int(undelivered) > 2_000
    assert problem.endswith("gave no answer within 0.5 s")


class _Refusing(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(401)

    do_POST = do_GET  # noqa: N815 - a name that http.server gives

    def log_message(self, *arguments):
        pass


def test_a_server_that_is_down_or_wants_a_password_keeps_everything_on_disk(store):
    with HTTPServer(("127.0.0.1", 0), _Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        record = start_record("locked", f"http://127.0.0.1:{server.server_port}", "segmentation")
        record.log_metrics({"loss": 1.0}, 0)
        delivery = record.close("FINISHED")
        server.shutdown()
        thread.join()
    assert "401" in delivery.problem
    assert delivery.undelivered >= 4
    down = deliver(record.run)
    assert "Connection refused" in down.problem
    assert down.undelivered == delivery.undelivered


_STARTING = """
import time
from pipeline.tracking import start_record
record = start_record("race", None, "segmentation")
for step in range(50):
    record.log_metrics({"loss": 1.0 / (step + 1)}, step)
    time.sleep(0.05)
delivery = record.close("FINISHED", timeout_s=120)
print(delivery.undelivered, delivery.problem)
"""


@pytest.mark.parametrize("num", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_processes_that_begin_at_once_on_an_empty_disk_all_succeed(store, num):
    (store / "mlflow.db").unlink()
    command = [sys.executable, "-c", _STARTING]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(num)]
    assert [process.communicate(timeout=500)[0].strip() for process in started] == ["0 None"] * num
    client = connect(f"sqlite:///{store}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("race").experiment_id])
    assert len(runs) == num
    for run in runs:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
        assert steps == list(range(50))
