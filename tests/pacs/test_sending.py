"""The courier: what is predicted is sent once; what cannot be sent waits longer and longer, or is parked."""

import time

import pytest

from pipeline.errors import Fault, ServiceError
from pipeline.pacs.instances import Instance, hash_uid
from pipeline.pacs.queue import Queue
from pipeline.pacs.sending import Courier

MODEL = "ab" * 32
STUDIES = ["1.2.1", "1.2.2"]
LATER = 1e12


class Archive:
    """A PACS that is away, or refuses some files."""

    def __init__(self):
        self.is_away, self.refused, self.arrived = False, {}, []

    def send(self, files, on_file=lambda: None):
        if self.is_away:
            raise ServiceError(Fault("pacs", "pacs-unreachable", "it is away"))
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
        queue.postpone(found, MODEL, 0.0, "no such class")
    work(courier)
    (parked,) = [one for one in queue.standings() if one.uid == STUDIES[0]]
    assert (parked.state, parked.reason) == ("parked", "no such class")
    assert states(queue)[STUDIES[1]] == "sent"


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
