"""MLflow's own pages in a real browser: `clinseg ui` leads to the curves, and a run's page to its essence."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from pipeline.tracking import start_record

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(trained, tmp_path_factory):
    """What `clinseg ui` says of a store that was copied, and that has two runs in an experiment."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        shutil.copytree(trained.folder / "mlruns", folder / "mlruns")
        facts = json.loads((trained.run / "run.json").read_text())
        record = start_record(facts["experiment"], None, "segmentation")
        record.log_parameters({"network.name": "attention_unet", "training.learning_rate": "0.5"})
        for epoch in (1, 2, 3):
            record.log_metrics({"validation/dice/mean": 0.3 * epoch, "training/loss": 1 / epoch}, epoch)
        assert record.close("FINISHED", timeout_s=120).is_complete
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "pipeline", "ui", "--port", str(port)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        yield Pages(_address(folder / "log", process), run_id_of(trained.run), run_id_of(record.folder))
    finally:
        process.terminate()
        process.wait(timeout=60)


@dataclass(frozen=True)
class Pages:
    """The address that was told, and MLflow's ids of the training and of the other run."""

    address: str
    trained: str
    other: str

    def of(self, path):
        base, _, page = self.address.partition("#")
        experiment = page.partition("/runs?")[0].rpartition("/")[2]
        joint = "&" if "?" in path else "?"
        return f"{base}#{path.format(experiment=experiment)}{joint}workflowType=machine_learning"


def run_id_of(run):
    return json.loads((run / "delivery.json").read_text())["run_id"]


def _address(log, process):
    """That which it names once it can be opened."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        lines = [line for line in log.read_text().splitlines() if line.startswith("http://")]
        if lines:
            return lines[0]
        time.sleep(0.2)
    pytest.fail("the pages did not come up")


def picture(browser, name):
    """Keeps what is seen, for whoever wants to look at it."""
    if folder := os.environ.get("CLINSEG_PICTURES"):
        (Path(folder) / f"{name}.png").write_bytes(browser.screenshot())


def test_the_curves_of_all_runs_and_the_note_of_one_are_shown(local_browser, pages, trained):
    browser = local_browser
    browser.open(pages.address, width=1700, height=1400)
    shown = "document.body.innerText"
    browser.wait_for(f"{shown}.includes({json.dumps(trained.run.name[:12])})")
    browser.wait_for("document.querySelectorAll('.js-plotly-plot').length > 0")
    picture(browser, "mlflow-charts")

    browser.open(pages.of(f"/experiments/{{experiment}}/runs/{pages.trained}"), width=1700, height=1400)
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
    picture(browser, "mlflow-run")


def test_two_runs_are_compared(local_browser, pages):
    runs = quote(json.dumps([pages.trained, pages.other]))
    browser, shown = local_browser, "document.body.innerText"
    browser.open(pages.of(f"/compare-runs?runs={runs}&experiments=%5B%22{{experiment}}%22%5D"), 1700, 1400)
    browser.wait_for(f"{shown}.includes('training.learning_rate')")
    browser.wait_for("document.querySelectorAll('.js-plotly-plot').length > 0")
    picture(browser, "mlflow-compare")
    text = browser.run(shown)
    assert "0.5" in text and "0.02" in text


def test_the_report_works_in_the_artifact_pane(local_browser, pages):
    browser, shown = local_browser, "document.body.innerText"
    artifacts = f"/experiments/{{experiment}}/runs/{pages.trained}/artifacts"
    browser.open(pages.of(f"{artifacts}/report.html"), width=1700, height=1800)
    browser.wait_for("document.querySelector('iframe.mlflow-html-iframe')")
    page = browser.sandbox()  # in a sandbox: scripts, but no origin and no storage
    browser.wait_for("document.readyState === 'complete' && document.querySelector('#cases')", **page)
    assert "Surface Dice" in browser.run(shown, **page)
    browser.wait_for("clinsegViewer.isReady || clinsegViewer.failed", **page)
    coloured = """(() => {
        const {gl, canvas} = clinsegViewer.rendering;
        clinsegViewer.rendering.drawScene();
        const bytes = new Uint8Array(4 * canvas.width * canvas.height);
        gl.readPixels(0, 0, canvas.width, canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
        let num = 0;
        for (let i = 0; i < bytes.length; i += 4) num += bytes[i] + bytes[i + 1] + bytes[i + 2] > 90;
        return num; })()"""
    assert browser.run(coloured, **page) > 100
    column = (
        "[...document.querySelectorAll('#cases tbody tr')].map(row => Number(row.cells[1].dataset.value))"
    )
    browser.run(
        "const body = document.querySelector('#cases tbody');"
        "body.append(body.rows[0].cloneNode(true));"
        "body.rows[0].cells[1].dataset.value = 2;"
        "document.querySelectorAll('#cases thead button')[1].click()",
        **page,
    )
    values = browser.run(column, **page)
    assert len(values) > 1 and values == sorted(values) and values[-1] == 2
    picture(browser, "mlflow-report")
