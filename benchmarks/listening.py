"""Studies sent to `clinseg listen` at once, which is killed meanwhile: does each get exactly one answer?

    python benchmarks/listening.py --studies 200 --kills 2 [--seed 0] [--clients 8]

A real PACS (Debian's Orthanc) and foreign senders (dcmtk's `storescu`, which try again as a scanner does,
until all is acknowledged) work in a network of their own, so this needs Linux and the right to make one
(root). The listener is killed (-9) at random moments and started again at once. Ends with exit code 1 if any
study has no segmentation in the PACS, or more than one, or one that is not what was predicted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydicom import dcmread

from pipeline.checkpoint import Checkpoint, write_checkpoint
from pipeline.config import job_to_mapping, load_job, segmentation_job
from pipeline.data.synthetic.series import write_series
from pipeline.networks import build_network
from pipeline.volume import Grid, Volume
from pipeline.workflows.auditing import verify_log

ROOT = Path(__file__).parents[1]
PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
SHAPE = (24, 24, 8)
HTTP, DICOM, LISTEN = 18042, 14242, 11112
PATIENCE_S = 3600


def write_model(path: Path) -> None:
    """A small segmentation network that never learned anything: it marks something everywhere."""
    torch.manual_seed(0)
    job = segmentation_job(load_job(ROOT / "configs/smoke/hippocampus.yaml"))
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    network = build_network(job.network, 1, len(labels))
    structures: dict[str, tuple[int, ...]] = {name: (value,) for name, value in labels.items() if value}
    weights, values = dict(network.state_dict()), job_to_mapping(job)
    write_checkpoint(
        path, Checkpoint(weights, values, labels, structures, ("MR",), None, {"run": "untrained"})
    )


def write_studies(folder: Path, num: int) -> list[Path]:
    """Studies of one series, each of another patient with a name, and with other voxels."""
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    paths = []
    for number in range(num):
        array = np.random.default_rng(number).integers(0, 1000, SHAPE).astype(np.int16)
        paths.append(folder / f"{number:03d}")
        for path in write_series(paths[-1], Volume(array, Grid(SHAPE, affine))):
            file = dcmread(path)
            file.PatientName, file.PatientID = f"Quackenbush^Zebulon{number}", f"MRN{number:07d}"
            file.save_as(path)
    return paths


class Pacs:
    """Orthanc, for as long as the `with` lasts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Pacs:
        self._folder.mkdir()
        settings = {
            "StorageDirectory": str(self._folder), "IndexDirectory": str(self._folder), "HttpPort": HTTP,
            "DicomPort": DICOM, "DicomAet": "ORTHANC", "Plugins": [PLUGIN], "RemoteAccessAllowed": False,
        }  # fmt: skip
        (self._folder / "orthanc.json").write_text(json.dumps(settings))
        command = ["/usr/sbin/Orthanc", str(self._folder / "orthanc.json")]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(300):
            try:
                self.ask("system")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
            else:
                return self
        raise SystemExit("Orthanc does not start")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """What its own interface answers."""
        return json.loads(self.fetch(path))

    def fetch(self, path: str) -> bytes:
        """The same, as bytes."""
        with urllib.request.urlopen(f"http://127.0.0.1:{HTTP}/{path}", timeout=30) as answer:
            return bytes(answer.read())

    def segmentations(self) -> list[dict[str, Any]]:
        """The series of segmentations."""
        return [s for s in self.ask("series?expand") if s["MainDicomTags"].get("Modality") == "SEG"]


class Listener:
    """`clinseg listen`, which can be killed and comes back."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._command = [
            sys.executable, "-m", "pipeline", "listen", str(model), "-o", str(folder),
            "--to", f"dicom://ORTHANC@127.0.0.1:{DICOM}", "--allow", "SCANNER",
            "--at", f"127.0.0.1:{LISTEN}", "--settle", "1",
        ]  # fmt: skip
        self.lines: list[str] = []
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the listener
        self._start()

    def _start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None, "it is a pipe"
        self.lines += process.stdout

    def kill(self) -> None:
        """SIGKILL, and a new one at once."""
        self.process.kill()
        self.process.wait()
        self.lines.append("killed")
        self._start()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(timeout=60)


def send(study: Path) -> int:
    """Sends a study until all of it is acknowledged; how often that took."""
    command = ["storescu", "-aet", "SCANNER", "-aec", "CLINSEG", "127.0.0.1", str(LISTEN), "+sd", str(study)]
    for attempt in range(1, PATIENCE_S):
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return attempt
        time.sleep(1)
    raise SystemExit("the listener does not take a study")


def kill_at_random(listener: Listener, pacs: Pacs, num_studies: int, num_kills: int, seed: int) -> None:
    """Waits until some random number of results has come, and a random moment more; each time."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    moments = sorted(draw.uniform(0, num_studies * 0.9) for _ in range(num_kills))
    for moment in moments:
        while sum("predicted" in line for line in listener.lines) <= moment - 1:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 1))
        listener.kill()
        print(f"killed when {len(pacs.segmentations())} of {num_studies} were in the PACS")


def judge(pacs: Pacs, studies: list[Path], results: Path) -> list[str]:
    """What is wrong with what the PACS holds."""
    wanted = {str(dcmread(next(s.iterdir()), stop_before_pixels=True).StudyInstanceUID) for s in studies}
    predicted = {
        dcmread(path).StudyInstanceUID: dcmread(path) for path in results.glob("*/dicom-seg/[!.]*.dcm")
    }
    counts: Counter[str] = Counter()
    wrong = []
    for series in pacs.segmentations():
        for instance in series["Instances"]:
            found = dcmread(BytesIO(pacs.fetch(f"instances/{instance}/file")))
            counts[str(found.StudyInstanceUID)] += 1
            if found.PixelData != predicted[found.StudyInstanceUID].PixelData:
                wrong.append(f"{found.StudyInstanceUID} holds something else than was predicted")
    wrong += [f"{uid} has {counts[uid]} segmentations" for uid in sorted(wanted) if counts[uid] != 1]
    return wrong + [f"{uid} was never sent" for uid in sorted(set(counts) - wanted)]


def main() -> int:
    """Runs it in a network of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if os.environ.get("CLINSEG_OWN_NETWORK") != "1":
        inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, *sys.argv]
        environment = os.environ | {"CLINSEG_OWN_NETWORK": "1"}
        return subprocess.run(["unshare", "-n", *inside], env=environment, check=False).returncode
    with tempfile.TemporaryDirectory() as scratch, Pacs(Path(scratch) / "orthanc") as pacs:
        folder = Path(scratch)
        write_model(folder / "model.safetensors")
        studies = write_studies(folder / "studies", options.studies)
        listener = Listener(folder / "model.safetensors", folder / "listener")
        while not any("listening" in line for line in listener.lines):
            time.sleep(0.1)
        start = time.monotonic()
        killer = threading.Thread(
            target=kill_at_random, args=(listener, pacs, options.studies, options.kills, options.seed)
        )
        killer.start()
        with ThreadPoolExecutor(options.clients) as clients:
            attempts = list(clients.map(send, studies))
        sent_s = time.monotonic() - start
        killer.join()
        deadline = time.monotonic() + PATIENCE_S
        while len(pacs.segmentations()) < options.studies and time.monotonic() < deadline:
            time.sleep(0.2)
        took_s = time.monotonic() - start
        time.sleep(3)  # one too many would come now
        code = listener.stop()
        wrong = judge(pacs, studies, folder / "listener/results")
        (results,) = (folder / "listener/results").iterdir()
        verify_log(results)
        listener.errors.seek(0)
        told = "".join(listener.lines) + listener.errors.read().decode()
        wrong += ["a name was told"] if "uackenbush" in told or "MRN0" in told else []
        wrong += [] if code == 75 else [f"SIGTERM ended it with {code}, not 75"]
    num_predicted, num_sent = (sum(w in line for line in listener.lines) for w in (": predicted", ": sent"))
    senders = f"{options.clients} senders, {options.kills} kills"
    print(f"{options.studies} studies of {SHAPE[2]} slices from {senders}")
    print(f"all acknowledged after {sent_s:.0f} s, with {sum(attempts)} tries")
    print(f"all answered after {took_s:.0f} s")
    print(
        f"the listener predicted {num_predicted} times and was told {num_sent} times that a result is stored"
    )
    print("the audit log is whole")
    print(
        "\n".join(wrong) if wrong else "each study has exactly one segmentation, the one that was predicted"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
