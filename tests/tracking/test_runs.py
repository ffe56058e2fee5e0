"""The folders: names, listing, and who holds a run."""

import os
import subprocess
import sys

import pytest

from pipeline.errors import ConfigError, FaultError
from pipeline.tracking import find_child, find_run, list_runs, read_children, read_metrics, start_record
from pipeline.tracking.events import Event, EventLog
from pipeline.tracking.runs import DeliveryNote, create_child, create_run, read_note, write_note

URI = "sqlite:////nowhere/mlflow.db"
MINUTE = 60_000


@pytest.fixture
def runs(tmp_path):
    """Three runs, oldest first, made without MLflow."""
    names = ["hippocampus", "Hippo campus: CT", "prostate"]
    found = [create_run(name, "segmentation", URI, 1_000 * n, tmp_path) for n, name in enumerate(names)]
    write_note(found[0], DeliveryNote("abcdef" + 26 * "0"))
    write_note(found[1], DeliveryNote("abcdef" + 26 * "1"))
    return found


def _log(run, *events):
    log = EventLog(run.events)
    for event in events:
        log.append(event)
    log.close()


def _status(status, time):
    return Event("status", time, {"status": status})


def test_a_run_is_found_by_every_name_it_has(runs, tmp_path):
    assert find_run("latest", tmp_path) == runs[2]
    for run in runs:
        assert find_run(run.name, tmp_path) == run
    assert find_run("abcdef0", tmp_path) == runs[0]
    assert find_run("abcdef" + 26 * "1", tmp_path) == runs[1]


def test_parts_of_a_run_are_found_by_it_and_are_never_the_latest(runs, tmp_path):
    assert find_child(runs[2], "fold0") is None
    parts = [create_child(runs[2], f"fold{n}", 5_000 + n) for n in range(2)]
    assert read_children(runs[2]) == parts
    assert read_children(runs[1]) == []
    assert find_child(runs[2], "fold1") == parts[1] == find_run(f"{runs[2].name}-fold1", tmp_path)
    assert (parts[0].uri, parts[0].experiment, parts[0].parent) == (URI, "prostate", runs[2].name)
    assert find_run("latest", tmp_path) == runs[2]
    (parts[0].path / "run.json").unlink()  # killed before it was written
    assert create_child(runs[2], "fold0", 6_000) == find_child(runs[2], "fold0")


@pytest.mark.parametrize(
    ("name", "rule"),
    [("abcdef", "run-ambiguous"), ("abcde", "run-unknown"), ("", "run-unknown"), ("../runs", "run-unknown")],
)
def test_what_names_no_run_or_several_is_refused(runs, tmp_path, name, rule):
    with pytest.raises(ConfigError) as caught:
        find_run(name, tmp_path)
    assert caught.value.faults[0].rule == rule


def test_a_misspelt_name_is_answered_with_the_nearest(runs, tmp_path):
    with pytest.raises(ConfigError, match=runs[2].name):
        find_run(runs[2].name.replace("prost", "prots"), tmp_path)


def test_an_empty_store_says_so(tmp_path):
    assert list_runs(tmp_path) == []
    with pytest.raises(ConfigError, match="no run"):
        find_run("latest", tmp_path)


def test_names_are_safe_for_files_and_never_the_same(tmp_path):
    names = {create_run("../A b/ß" + 99 * "x", "segmentation", URI, 0, tmp_path).name for _ in range(50)}
    assert len(names) == 50
    assert all(name.isascii() and "/" not in name and len(name) < 70 for name in names)
    assert {path.parent.name for path in tmp_path.glob("*/*")} == {"runs"}


def test_a_listing_tells_status_time_worked_best_values_and_what_is_undelivered(runs, tmp_path):
    _log(runs[0], _status("RUNNING", 0), Event("metrics", 5 * MINUTE, {"loss": 1.0}, 1))
    _log(
        runs[1],
        _status("RUNNING", 0),
        Event("metrics", 2 * MINUTE, {"best/dice": 0.7, "best/hd95": 3.0, "dice": 0.7}, 1),
        _status("RUNNING", 100 * MINUTE),  # killed after 2 minutes, resumed much later
        Event("metrics", 101 * MINUTE, {"best/dice": 0.8}, 2),
        _status("FINISHED", 103 * MINUTE),
    )
    newest, middle, oldest = list_runs(tmp_path)
    assert (newest.name, newest.status, newest.undelivered) == (runs[2].name, "interrupted", 0)
    assert (oldest.status, oldest.minutes, oldest.best) == ("interrupted", 5.0, {})
    assert (middle.status, middle.minutes) == ("FINISHED", 5.0)
    assert middle.best == {"dice": 0.8, "hd95": 3.0}
    assert middle.undelivered == 5
    assert middle.started.timestamp() == 1
    assert [run.name for run in list_runs(tmp_path, limit=1)] == [newest.name]


def test_the_curves_of_a_run_are_read_from_its_folder(runs):
    _log(
        runs[0],
        _status("RUNNING", 0),
        *(Event("metrics", n, {"loss": n / 3, "dice": 1.0}, n) for n in range(3)),
    )
    assert read_metrics(runs[0]) == {
        "loss": [(0, 0.0), (1, 1 / 3), (2, 2 / 3)],
        "dice": [(n, 1.0) for n in range(3)],
    }
    assert read_metrics(runs[1]) == {}


def test_a_held_run_is_running_and_held_once(runs, tmp_path):
    lock = runs[0].hold()
    assert list_runs(tmp_path)[2].status == "RUNNING"
    with pytest.raises(ConfigError, match="another process"):
        runs[0].hold()
    lock.release()
    assert list_runs(tmp_path)[2].status == "interrupted"
    runs[0].hold().release()


def test_a_process_forked_while_a_run_is_held_neither_frees_nor_keeps_it(runs):
    lock = runs[0].hold()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)  # lives on until the parent says so
        os._exit(0)
    assert runs[0].is_held()
    lock.release()
    assert not runs[0].is_held()
    os.close(writer)
    os.waitpid(child, 0)
    os.close(reader)


@pytest.mark.parametrize("text", ["", "[]", '{"name": 1}', '{"created": "x"}', "\xff"])
def test_a_folder_that_is_no_run_is_passed_over(runs, tmp_path, text):
    (tmp_path / "runs/broken").mkdir()
    (tmp_path / "runs/broken/run.json").write_text(text, encoding="latin-1")
    assert len(list_runs(tmp_path)) == 3


@pytest.mark.parametrize("note", ["", "{}", '{"run_id": null, "offset": 99, "refused": []}', "[1]"])
def test_a_note_that_cannot_be_true_is_as_good_as_none(runs, note):
    _log(runs[0], _status("RUNNING", 0))
    (runs[0].path / "delivery.json").write_text(note)
    assert read_note(runs[0]) == DeliveryNote()


def test_listing_imports_no_mlflow():
    code = "import sys; from pipeline.tracking import list_runs; list_runs(); print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("obstacle", ["mlruns", "mlruns/runs"])
def test_a_store_that_cannot_be_written_is_said(tmp_path, obstacle):
    (tmp_path / obstacle).parent.mkdir(exist_ok=True)
    (tmp_path / obstacle).write_text("a file where a folder should be")
    with pytest.raises(FaultError, match="cannot be written"):
        start_record("e", None, "segmentation", tmp_path / "mlruns")
