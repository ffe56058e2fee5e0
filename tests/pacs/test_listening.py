"""A listener between a scanner (dcmtk) and a PACS (Orthanc): all is answered once, and nobody is named."""

import json
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from io import BytesIO
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from pipeline.data.dicom import list_dicom_files
from pipeline.data.synthetic.series import write_series
from pipeline.pacs.instances import hash_uid
from pipeline.pacs.queue import NAME
from pipeline.volume import Grid, Volume
from pipeline.workflows.auditing import verify_log

ROOT = Path(__file__).parents[2]
BRAIN = ROOT / "../shared/data/dicom/brain"
# Sends itself the signal as a transaction of the queue has begun, and holds its lock.
AT_A_BAD_MOMENT = """
import contextlib, os, signal, sys

import pipeline.inference.predictor, pipeline.pacs.receiving, pipeline.workflows.listening
from pipeline.cli.main import main

BEGIN = contextlib._GeneratorContextManager.__enter__.__code__
num_begun = 0

def follow(frame, event, _):
    global num_begun
    if event == "return" and frame.f_code is BEGIN and frame.f_locals["self"].gen.__name__ == "_transaction":
        num_begun += 1
        if num_begun == 4:
            sys.setprofile(None)
            os.kill(os.getpid(), signal.SIGTERM)

sys.setprofile(follow)
main()
"""
SECRETS = ("quackenbush", "zebulon", "mrn7745321")

pytestmark = pytest.mark.slow


def wait(condition, what, seconds=120):
    """Polls: on a busy machine a listener takes its time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


def make_series(folder, seed=0, num_slices=8, size=(24, 20)):
    array = np.random.default_rng(seed).integers(0, 999, (*size, num_slices)).astype(np.int16)
    affine = np.diag([-1.5, -1.5, 3.0, 1.0])
    affine[:3, 3] = 20, -30, 7 + seed
    write_series(folder, Volume(array, Grid(array.shape, affine)), description="T2 ax")
    for path in list_dicom_files(folder):
        file = pydicom.dcmread(path)
        file.PatientName, file.PatientID = "Quackenbush^Zebulon", "MRN7745321"
        file.save_as(path)
    return folder


def study_of(folder):
    return str(pydicom.dcmread(next(folder.rglob("*.dcm")), stop_before_pixels=True).StudyInstanceUID)


def store(*folders, aet="SCANNER", port=11113):
    """Sends with a foreign client."""
    command = ["storescu", "-aet", aet, "-aec", "CLINSEG", "127.0.0.1", str(port), "+sd", "+r"]
    return subprocess.run([*command, *map(str, folders)], capture_output=True, text=True, check=False)


class Listener:
    """In a process of its own, as a hospital runs it."""

    def __init__(self, model, folder, target, *more):
        self.folder, self.lines = folder, []
        command = [sys.executable, "-m", "pipeline", "listen", model, "-o", folder, "--to", target]
        command += ["--allow", "SCANNER", "--allow", "ORTHANC", "--at", "127.0.0.1:11113", "--settle", "0.5"]
        self.process = subprocess.Popen(
            [*map(str, command), *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True)
        self._reader.start()
        wait(lambda: self.says("listening") or self.process.poll() is not None, self.lines)

    def says(self, *words):
        return [line for line in self.lines if all(word in line for word in words)]

    def stop(self):
        self.process.terminate()
        code = self.process.wait(timeout=60)
        self.end()
        return code

    def end(self):
        """Whatever became of it, nothing of it is left open."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def pacs(orthancs):
    return orthancs()


@pytest.fixture(scope="module")
def listener(model, pacs, tmp_path_factory):
    listener = Listener(model, tmp_path_factory.mktemp("listener") / "own", pacs.dimse, "--series", "T2*")
    yield listener
    listener.end()


def in_pacs(pacs, study):
    """The segmentations of a study there."""
    found = (pydicom.dcmread(BytesIO(pacs.file(instance))) for instance in pacs.instances("SEG"))
    return [file for file in found if file.StudyInstanceUID == study]


def mask_of(listener, study):
    (path,) = listener.folder.glob(f"results/*/{hash_uid(study)}.nii.gz")
    return nib.load(path)


def assert_same_voxels(segmentation, mask):
    """The object holds the label map, at its place in the patient."""
    found = segmentation.get_volume(combine_segments=True, allow_missing_positions=True)
    array = np.asarray(mask.dataobj)
    voxels = np.argwhere(array).astype(float)
    to_voxel = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ found.affine) @ mask.affine
    placed = (to_voxel @ np.c_[voxels, np.ones(len(voxels))].T)[:3]
    indices = np.rint(placed).astype(int)
    assert len(voxels) and np.abs(placed - indices).max() < 0.01
    assert np.array_equal(found.array[tuple(indices)], array[array > 0])
    assert np.count_nonzero(found.array) == len(voxels)


@pytest.mark.parametrize("source", ["made up", "brain"])
def test_a_study_comes_back_as_a_segmentation_that_says_what_predict_says(
    clinseg, model, listener, pacs, tmp_path, source
):
    if source == "brain" and not BRAIN.exists():
        pytest.skip("needs ../shared/data/dicom")
    scan = BRAIN if source == "brain" else make_series(tmp_path / "scan", seed=1)
    study = study_of(BRAIN / "T2reg" if source == "brain" else scan)
    done = store(scan)
    assert done.returncode == 0, done.stderr
    (stored,) = wait(lambda: in_pacs(pacs, study), listener.lines)
    answer = clinseg("pacs", "pull", pacs.web, "--study", study, "-o", tmp_path / "back")
    assert answer.code == 0, answer.err
    (path,) = (tmp_path / "back").rglob("*.dcm")
    assert pydicom.dcmread(path) == stored
    assert_same_voxels(highdicom.seg.segread(path), mask_of(listener, study))
    answer = clinseg("predict", model, scan, "-o", tmp_path / "out", "--series", "T2*")
    assert answer.code == 0, answer.err
    (mask,) = (tmp_path / "out").glob("*.nii.gz")
    ours, theirs = nib.load(mask), mask_of(listener, study)
    assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    assert np.allclose(ours.affine, theirs.affine)


def test_sent_again_or_forgotten_between_sending_and_remembering_it_stays_one(listener, pacs, tmp_path):
    scan = make_series(tmp_path / "scan", seed=2)
    study = study_of(scan)
    assert store(scan).returncode == 0
    wait(lambda: listener.says(hash_uid(study), ": sent"), listener.lines)
    assert store(scan).returncode == 0  # the very same, as a scanner does that lost the acknowledgement
    with closing(sqlite3.connect(listener.folder / NAME, timeout=30)) as base, base:
        base.execute("UPDATE answers SET state = 'predicted' WHERE study = ?", (hash_uid(study),))
    wait(lambda: len(listener.says(hash_uid(study), ": sent")) == 2, listener.lines)
    assert len(in_pacs(pacs, study)) == 1
    assert len(listener.says(hash_uid(study), "predicted")) == 1


def test_what_arrives_late_is_predicted_again_only_if_the_model_looks_at_it(listener, pacs, tmp_path):
    scan = make_series(tmp_path / "scan", seed=3)
    study, name = study_of(scan), hash_uid(study_of(scan))
    files = list_dicom_files(scan)
    (tmp_path / "late").mkdir()
    files[0].rename(tmp_path / "late/slice.dcm")  # the series' last slice
    assert store(scan).returncode == 0
    wait(lambda: listener.says(name, ": sent"), listener.lines)
    other = make_series(tmp_path / "other", seed=4)
    for path in list_dicom_files(other):
        file = pydicom.dcmread(path)
        file.StudyInstanceUID, file.SeriesDescription = study, "DWI"
        file.save_as(path)
    assert store(other).returncode == 0
    waits = (
        "SELECT 1 FROM studies s JOIN answers a ON a.study = s.id WHERE s.id = ? AND s.revision > a.revision"
    )
    with closing(sqlite3.connect(listener.folder / NAME, timeout=30)) as base:
        wait(lambda: not base.execute(waits, (name,)).fetchall(), "the other series was not looked at")
    assert len(listener.says(name, ": predicted")) == 1
    assert store(tmp_path / "late").returncode == 0
    wait(lambda: len(listener.says(name, ": sent")) == 2, listener.lines)
    assert mask_of(listener, study).shape[2] == len(files)
    assert len(in_pacs(pacs, study)) == 2  # of two different series: nothing in a PACS is ever overwritten


def test_who_is_not_allowed_and_what_is_no_volume_is_told_without_names(clinseg, listener, pacs, tmp_path):
    scan = make_series(tmp_path / "scan", seed=5, num_slices=1)
    assert store(scan, aet="QUACKENBUSH_PC").returncode != 0
    wait(lambda: listener.says("refused"), listener.lines)
    assert store(scan).returncode == 0
    (told,) = wait(lambda: listener.says("parked"), listener.lines)
    assert hash_uid(study_of(scan)) in told and "too-few-slices" in told
    answer = clinseg("pacs", "status", listener.folder)
    assert answer.code == 0 and study_of(scan) in answer.out and "too-few-slices" in answer.out
    assert clinseg("pacs", "status", listener.folder, "--retry").code == 0
    wait(lambda: len(listener.says("parked")) == 2, listener.lines)
    said = "".join(line for line in listener.lines if "QUACKENBUSH_PC" not in line) + answer.out
    said += " ".join(str(path) for path in listener.folder.rglob("*"))
    said += (listener.folder / NAME).read_bytes().decode("latin-1")
    said += (listener.folder / f"{NAME}-wal").read_bytes().decode("latin-1")
    assert not [secret for secret in SECRETS if secret in said.lower()]
    assert listener.folder.stat().st_mode & 0o777 == 0o700


def test_while_the_pacs_is_away_answers_wait_and_a_stopped_listener_goes_on(
    clinseg, model, listener, pacs, tmp_path
):
    scan = make_series(tmp_path / "scan", seed=6)
    name = hash_uid(study_of(scan))
    pacs.stop()
    assert store(scan).returncode == 0
    wait(lambda: listener.says("segmentations wait"), listener.lines)
    assert "cannot be reached" in clinseg("pacs", "status", listener.folder).out
    other = clinseg(
        "listen", model, "-o", listener.folder, "--to", pacs.dimse, "--allow", "A", "--at", "127.0.0.1:11114"
    )
    assert other.code == 2 and "another listener" in other.err
    assert listener.stop() == 75 and "the same command goes on" in listener.lines[-1]
    pacs.start()
    again = Listener(model, listener.folder, pacs.web, "--series", "T2*")
    wait(lambda: again.says(name, ": sent"), again.lines)
    assert not again.says("predicted") and len(in_pacs(pacs, study_of(scan))) == 1
    assert again.stop() == 75
    (log,) = listener.folder.glob("results/*/audit.jsonl")
    verify_log(log)
    assert json.loads(log.read_text().splitlines()[0])["outputs"]


def test_a_signal_ends_it_whatever_it_is_doing(network, model, tmp_path):
    command = [sys.executable, "-c", AT_A_BAD_MOMENT, "listen", model, "-o", tmp_path / "own"]
    command += ["--to", "dicom://ORTHANC@127.0.0.1:14242", "--allow", "SCANNER", "--at", "127.0.0.1:11115"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 75, done.stderr
    assert "the same command goes on" in done.stderr


def test_a_signal_ends_it_at_the_next_pass_though_a_sender_stays_and_counts_no_start(model, pacs, tmp_path):
    study = make_series(tmp_path / "scan", seed=8, num_slices=32, size=(512, 512))
    listening = Listener(model, tmp_path / "own", pacs.dimse, "--series", "T2*")
    assert store(study).returncode == 0
    started = "SELECT starts FROM answers WHERE state = 'predicting'"
    with closing(sqlite3.connect(listening.folder / NAME, timeout=30)) as base:
        wait(lambda: base.execute(started).fetchall(), listening.lines)
        sender = AE("SCANNER")
        sender.add_requested_context(Verification)
        quiet = sender.associate("127.0.0.1", 11113, ae_title="CLINSEG")
        assert quiet.is_established
        assert listening.stop() == 75
        assert base.execute(started).fetchall() == [(0,)]
    assert not listening.says(": predicted")


def test_each_of_many_studies_has_one_answer_though_the_listener_is_killed(network):
    """A few of what `benchmarks/listening.py` does with 200."""
    command = [sys.executable, str(ROOT / "benchmarks/listening.py"), "--studies", "8", "--kills", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exactly one segmentation" in done.stdout
