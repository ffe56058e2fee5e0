"""MLflow's own pages in a real browser: `clinseg ui` leads to the curves, and a run's page to its essence."""

import json
import shutil
import socket
import subprocess
import sys
import time

import pytest

from pipeline.tracking import start_record

pytestmark = pytest.mark.slow


@pytest.fixture
def pages(trained, tmp_path, monkeypatch):
    """What `clinseg ui` says of a store that was copied, and that has two runs in an experiment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.folder / "mlruns", tmp_path / "mlruns")
    facts = json.loads((trained.run / "run.json").read_text())
    record = start_record(facts["experiment"], None, "segmentation")
    for epoch in (1, 2, 3):
        record.log_metrics({"validation/dice/mean": 0.3 * epoch}, epoch)
    assert record.close("FINISHED", timeout_s=120).is_complete
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pipeline", "ui", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        yield _address(tmp_path / "log", process), record.name
    finally:
        process.terminate()
        process.wait(timeout=60)


def _address(log, process):
    """That which it names once it can be opened."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        lines = [line for line in log.read_text().splitlines() if line.startswith("http://")]
        if lines:
            return lines[0]
        time.sleep(0.2)
    pytest.fail("the pages did not come up")


def test_the_curves_of_all_runs_and_the_note_of_one_are_shown(local_browser, pages, trained):
    address, second = pages
    browser = local_browser
    browser.open(address, width=1700, height=1400)
    shown = "document.body.innerText"
    for name in trained.run.name, second:
        browser.wait_for(f"{shown}.includes({json.dumps(name[:12])})")
    browser.wait_for("document.querySelectorAll('.js-plotly-plot').length > 0")

    run_id = json.loads((trained.run / "delivery.json").read_text())["run_id"]
    base, _, page = address.partition("#")
    experiment = page.split("/runs?")[0]
    browser.open(f"{base}#{experiment}/runs/{run_id}?workflowType=machine_learning", width=1700, height=1400)
    browser.wait_for(f"{shown}.includes('judged on fold 0')")
    browser.run(
        "[...document.querySelectorAll('button')].find(b => b.innerText.includes('Show more')).click()"
    )
    browser.wait_for("document.querySelector('img[src*=get-artifact]')?.naturalWidth > 100")
    text = browser.run(shown)
    assert "Surface Dice" in text and "clinseg train" in text
    assert browser.run("document.querySelector('a[href*=\"path=report.html\"]') !== null")
    # Figures stand above all else that is said.
    assert text.index("Surface Dice") < text.index("network.features")
    assert not [url for url in browser.requests if url.startswith("http") and "//127.0.0.1:" not in url]
