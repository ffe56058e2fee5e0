"""A team's record: a real PostgreSQL, written to directly and through a real server."""

import os
import pwd
import re
import subprocess
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pipeline.tracking import fetch_model, start_record
from pipeline.tracking.store import connect

pytest.importorskip("psycopg", reason="needs psycopg (`pip install 'clinseg[postgresql]'`)")
pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs/record.md"


@pytest.fixture(scope="module")
def database():
    """URI of an empty database in a cluster of its own that listens to a socket in its folder alone."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("needs PostgreSQL (`apt-get install postgresql`)")
    with TemporaryDirectory(prefix="postgresql-") as folder:  # pytest's own admit nobody but its user
        yield from _run_cluster(Path(folder), programs[-1])


def _run_cluster(folder, programs):
    who = []
    if os.getuid() == 0:  # PostgreSQL refuses to be root
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("needs the user postgres, for PostgreSQL does not run as root")
        who = ["runuser", "-u", "postgres", "--"]
        os.chown(folder, account.pw_uid, account.pw_gid)

    def run(program, *arguments):
        command = [*who, str(programs / program), *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=120)

    run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "postgres")
    settings = f"-c listen_addresses='' -k {folder}"
    run("pg_ctl", "-D", str(folder / "data"), "-o", settings, "-l", str(folder / "log"), "-w", "start")
    try:
        run("createdb", "-h", str(folder), "-U", "postgres", "mlflow")
        yield f"postgresql://postgres@/mlflow?host={folder}"
    finally:
        run("pg_ctl", "-D", str(folder / "data"), "-m", "fast", "-w", "stop")


def _record(uri, name):
    record = start_record(name, uri, "segmentation")
    record.log_parameters({"network.name": "attention_unet", "data.fold": "0"})
    record.log_dataset("heads", "0123456789abcdef", "training", "/data/heads", 4)
    for step in range(300):
        record.log_metrics({"training/loss": 1 / (step + 1), "validation/dice/mean": step / 300}, step)
    (record.folder / "best.safetensors").write_bytes(b"weights")
    record.log_artifact(record.folder / "best.safetensors", "model")
    delivery = record.close("FINISHED", timeout_s=200)
    assert (delivery.undelivered, delivery.refused, delivery.problem) == (0, (), None)
    return delivery.run_id


def _check(uri, run_id):
    client = connect(uri)
    run = client.get_run(run_id)
    assert (run.info.status, list(run.data.params)) == ("FINISHED", ["network.name", "data.fold"])
    for name in "training/loss", "validation/dice/mean":
        points = client.get_metric_history(run_id, name)
        assert sorted(point.step for point in points) == list(range(300))
    assert run.inputs.dataset_inputs[0].dataset.name == "heads"
    assert fetch_model(run_id, uri=uri).read_bytes() == b"weights"


def test_a_run_goes_to_postgresql_directly(database, store):
    _check(database, _record(database, "direct"))


def _status(port, host, origin):
    headers = {"Host": host, "Origin": origin, "Content-Type": "application/json"}
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", "/api/2.0/mlflow/experiments/search", '{"max_results": 1}', headers)
        with connection.getresponse() as response:
            return response.status


def test_a_run_goes_to_postgresql_through_a_server_as_the_docs_have_it(
    database, store, tmp_path, mlflow_server
):
    text = DOCS.read_text(encoding="utf-8")
    uri, hosts, origins = (
        re.search(rf"{name}(\S+)", text)[1]
        for name in ("MLFLOW_TRACKING_URI=", "--allowed-hosts ", "--cors-allowed-origins ")
    )
    options = ("--allowed-hosts", f"{hosts},127.0.0.1:*", "--cors-allowed-origins", origins)
    with mlflow_server(database, tmp_path, *options) as port:
        host = uri.removeprefix("http://")
        assert _status(port, host, uri) == 200
        assert _status(port, "mlflow.elsewhere:5000", uri) == 403
        local = f"http://127.0.0.1:{port}"
        _check(local, _record(local, "served"))
    assert list((tmp_path / "files").rglob("best.safetensors"))
    assert not (store / "artifacts").exists()
