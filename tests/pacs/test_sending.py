"""The courier: what is predicted is sent once; what cannot be sent waits longer and longer, or is parked."""

import shutil
import threading
import time
from threading import Event

import pytest
from pydicom.data import get_testdata_file
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.dul import DULServiceProvider

from pipeline.errors import Fault, ServiceError
from pipeline.pacs import sending
from pipeline.pacs.address import DimseAddress
from pipeline.pacs.dimse import DimsePacs
from pipeline.pacs.instances import Instance, hash_uid
from pipeline.pacs.queue import Queue
from pipeline.pacs.sending import Courier

MODEL = "ab" * 32
STUDIES = ["1.2.1", "1.2.2"]
LATER = 1e12


class Archive:
    """A PACS that is away, refuses some files, or breaks off at them."""

    def __init__(self):
        self.is_away, self.refused, self.arrived, self.breaking = False, {}, [], set()

    def send(self, files, on_file=lambda: None):
        if self.is_away:
            raise ServiceError(Fault("pacs", "pacs-unreachable", "it is away"))
        if self.breaking.intersection(files):
            raise ServiceError(Fault("pacs", "pacs-error", "it broke off"))
        self.arrived += [path for path in files if path not in self.refused]
        return {path: reason for path, reason in self.refused.items() if path in files}


@pytest.fixture
def queue(tmp_path):
    queue = Queue(tmp_path)
    for study in STUDIES:
        queue.put(Instance(study, f"{study}.1", f"{study}.1.1", b"slice"), "ff", 100.0)
    queue.begin(MODEL, queue.waiting(MODEL, LATER, LATER))
    for study in STUDIES:
        queue.predicted(hash_uid(study), MODEL, "inputs")
        (tmp_path / hash_uid(study)).write_bytes(b"mask")
    yield queue
    queue.close()


@pytest.fixture
def archive():
    return Archive()


@pytest.fixture
def courier(queue, archive, tmp_path):
    return Courier(archive, queue, MODEL, lambda study: tmp_path / study, lambda text: None)


def work(courier, seconds=0.7):
    with courier.working():
        time.sleep(seconds)
    assert not courier.failures


def states(queue):
    return {one.uid: one.state for one in queue.standings()}


def test_what_is_predicted_arrives_once(queue, archive, courier, tmp_path):
    work(courier)
    work(courier)
    assert sorted(archive.arrived) == sorted(tmp_path / hash_uid(study) for study in STUDIES)
    assert set(states(queue).values()) == {"sent"}


def test_one_that_is_gone_is_predicted_again_and_harms_no_other(queue, archive, courier, tmp_path):
    (tmp_path / hash_uid(STUDIES[0])).unlink()
    work(courier)
    assert states(queue) == {STUDIES[0]: "predicting", STUDIES[1]: "sent"}


def test_one_that_is_refused_again_and_again_is_parked_with_the_reason(queue, archive, courier, tmp_path):
    archive.refused = {tmp_path / hash_uid(STUDIES[0]): "no such class"}
    for _ in range(4):
        (found,) = [one for one in queue.unsent(MODEL, LATER, 9) if one.study == hash_uid(STUDIES[0])]
        queue.postpone(found, MODEL, 0.0, "no such class", is_refusal=True)
    work(courier)
    (parked,) = [one for one in queue.standings() if one.uid == STUDIES[0]]
    assert (parked.state, parked.reason) == ("parked", "no such class")
    assert states(queue)[STUDIES[1]] == "sent"


def test_that_it_was_away_does_not_count_as_refusing(queue, archive, courier, tmp_path):
    for _ in range(4):
        for one in queue.unsent(MODEL, LATER, 9):
            queue.postpone(one, MODEL, 0.0, "away")
    archive.refused = {tmp_path / hash_uid(STUDIES[0]): "starting up"}
    work(courier)
    assert states(queue) == {STUDIES[0]: "predicted", STUDIES[1]: "sent"}
    assert [one.refusals for one in queue.unsent(MODEL, LATER, 9)] == [1]


def test_one_at_which_it_breaks_off_keeps_no_other_back(queue, archive, courier, tmp_path):
    archive.breaking = {tmp_path / hash_uid(STUDIES[0])}
    work(courier)
    assert set(states(queue).values()) == {"predicted"}  # together they did not arrive
    for one in queue.unsent(MODEL, LATER, 9):
        queue.postpone(one, MODEL, 0.0, "it broke off")
    work(courier)
    assert states(queue) == {STUDIES[0]: "predicted", STUDIES[1]: "sent"}


def test_a_pacs_that_never_answers_does_not_keep_the_program_from_ending(queue, tmp_path, monkeypatch):
    """An association's threads are none that a program may end before."""
    monkeypatch.setattr(sending, "_PATIENCE_S", 0.5)
    for study in STUDIES:
        shutil.copy(get_testdata_file("MR_small.dcm"), tmp_path / hash_uid(study))
    asked, done = Event(), Event()

    def store(event):
        asked.set()
        done.wait(60)
        return 0

    entity = AE("SLOW")
    entity.supported_contexts = AllStoragePresentationContexts
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    pacs = DimsePacs(DimseAddress("SLOW", "127.0.0.1", server.server_address[1]), "CLINSEG")
    with Courier(pacs, queue, MODEL, lambda study: tmp_path / study, lambda text: None).working():
        assert asked.wait(60)
    kept = [one for one in threading.enumerate() if isinstance(one, DULServiceProvider)]
    ours = [thread for thread in kept if thread.assoc.is_requestor]
    for thread in ours:
        thread.join(10)
    assert not [thread for thread in ours if thread.is_alive()]
    assert states(queue)[STUDIES[0]] == "predicted"  # to be sent again
    done.set()
    server.shutdown()


@pytest.mark.parametrize(("attempts", "pause"), [(0, 2.0), (3, 16.0), (40, 600.0)])
def test_while_it_is_away_pauses_double_and_nothing_is_parked(queue, archive, courier, attempts, pause):
    archive.is_away = True
    for _ in range(attempts):
        for one in queue.unsent(MODEL, LATER, 9):
            queue.postpone(one, MODEL, 0.0, "away")
    before = time.time()
    work(courier, seconds=0.5)
    assert set(states(queue).values()) == {"predicted"}
    assert queue.unsent(MODEL, before + pause, 9) == []
    found = queue.unsent(MODEL, time.time() + pause, 9)
    assert [one.attempts for one in found] == [attempts + 1] * 2
