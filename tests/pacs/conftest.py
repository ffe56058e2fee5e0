"""A model to listen with; and a real PACS, Orthanc, in a network of its own, since it binds all addresses."""

import ctypes
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import Checkpoint, write_checkpoint
from pipeline.config import job_to_mapping, load_job, segmentation_job
from pipeline.networks import build_network

ROOT = Path(__file__).parents[2]
LABELS = {"background": 0, "anterior": 1, "posterior": 2}
ORTHANC, PLUGIN = Path("/usr/sbin/Orthanc"), Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
CLONE_NEWNET = 0x40000000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network that never learned: it marks something everywhere, which is all that is needed here."""
    torch.manual_seed(0)
    job = segmentation_job(load_job(ROOT / "configs/smoke/hippocampus.yaml"))
    network = build_network(job.network, 1, len(LABELS))
    structures = {name: (value,) for name, value in LABELS.items() if value}
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    weights, values = dict(network.state_dict()), job_to_mapping(job)
    write_checkpoint(
        path, Checkpoint(weights, values, LABELS, structures, ("MR",), None, {"run": "untrained"})
    )
    return path


@pytest.fixture(scope="module")
def network():
    """Takes this thread, and whatever it starts, into an empty network with nothing but loopback."""
    if not (ORTHANC.exists() and PLUGIN.exists() and shutil.which("storescu")):
        pytest.skip("needs Debian's orthanc, orthanc-dicomweb and dcmtk")
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET) != 0:
        os.close(home)
        pytest.skip(f"needs the right to make a network: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    yield
    assert libc.setns(home, CLONE_NEWNET) == 0
    os.close(home)


@dataclass
class Orthanc:
    """A running PACS."""

    folder: Path
    http: int
    dicom: int
    modalities: dict = field(default_factory=dict)
    more: dict = field(default_factory=dict)
    process: subprocess.Popen | None = None

    @property
    def dimse(self):
        return f"dicom://ORTHANC@127.0.0.1:{self.dicom}"

    @property
    def web(self):
        return f"http://127.0.0.1:{self.http}/dicom-web"

    def start(self):
        database = self.folder / "database"
        database.mkdir(parents=True, exist_ok=True)
        settings = {
            "StorageDirectory": str(database), "IndexDirectory": str(database), "Plugins": [str(PLUGIN)],
            "HttpPort": self.http, "DicomPort": self.dicom, "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False, "DicomModalities": self.modalities,
            "DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}, **self.more,
        }  # fmt: skip
        (self.folder / "orthanc.json").write_text(json.dumps(settings))
        with (self.folder / "orthanc.log").open("ab") as log:
            command = [str(ORTHANC), str(self.folder / "orthanc.json")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(200):
            try:
                self.ask("system")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
            else:
                return self
        raise AssertionError((self.folder / "orthanc.log").read_text())

    def stop(self):
        self.process.kill()
        self.process.wait()

    def ask(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/{path}", timeout=10) as answer:
            return json.load(answer)

    def instances(self, modality):
        """Orthanc's own ids of the instances of a modality."""
        return [
            instance
            for series in self.ask("series?expand")
            if series["MainDicomTags"]["Modality"] == modality
            for instance in series["Instances"]
        ]

    def file(self, instance):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/instances/{instance}/file") as answer:
            return answer.read()


@pytest.fixture(scope="module")
def orthancs(network, tmp_path_factory):
    """Makes running ones, which end with the module."""
    made = []

    def make(**settings):
        folder = tmp_path_factory.mktemp("orthanc")
        made.append(
            Orthanc(folder, 18042, 14242, {"clinseg": ["CLINSEG", "127.0.0.1", 11112]}, settings).start()
        )
        return made[-1]

    yield make
    for pacs in made:
        pacs.stop()


@pytest.fixture
def orthanc(orthancs):
    pacs = orthancs()
    yield pacs
    pacs.stop()
