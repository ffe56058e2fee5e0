"""The queue and the desk in front of it: what is complete, what is answered, what is told."""

import hashlib
import sqlite3
import time
import warnings
from io import BytesIO
from threading import Event, Thread

import pydicom
import pytest
from pydicom.data import get_testdata_file

from pipeline.errors import ConfigError, InputError
from pipeline.pacs.desk import Desk
from pipeline.pacs.instances import Instance, hash_uid, read_instance
from pipeline.pacs.queue import NAME, Queue

MODEL = "ab" * 32
ONE, OTHER = "1.2.3", "1.2.4"
LATER = 1e12


def instance(study=ONE, number=1, content=b"slice"):
    return Instance(study, f"{study}.1", f"{study}.1.{number}", content)


@pytest.fixture
def queue(tmp_path):
    queue = Queue(tmp_path)
    yield queue
    queue.close()


@pytest.fixture
def desk(queue, tmp_path):
    return Desk(queue, tmp_path / "incoming", settle_s=0.001, keep_s=0.001, tell=lambda text: None)


def put(queue, *instances, now=100.0):
    for one in instances:
        queue.put(one, hashlib.sha256(one.content).hexdigest(), now)


def waiting(queue, settled=LATER, abandoned=LATER):
    return [one.study for one in queue.waiting(MODEL, settled, abandoned)]


def answer(queue):
    """Predicts and sends what waits."""
    (study,) = queue.waiting(MODEL, LATER, LATER)
    queue.begin(MODEL, [study])
    queue.predicted(study.study, MODEL, "inputs")
    (unsent,) = queue.unsent(MODEL, LATER, 9)
    queue.sent(unsent, MODEL)


def test_a_study_waits_until_it_settled_and_ten_times_longer_if_its_sender_broke_off(queue):
    put(queue, instance(), now=100.0)
    assert waiting(queue, settled=150.0, abandoned=99.0) == []  # open: its sender may come back
    assert waiting(queue, settled=150.0, abandoned=100.0) == [hash_uid(ONE)]
    queue.close_studies([hash_uid(ONE)])
    assert waiting(queue, settled=99.0, abandoned=0.0) == []
    assert waiting(queue, settled=100.0, abandoned=0.0) == [hash_uid(ONE)]


def test_what_was_entered_is_there_after_the_process_is_gone(queue, tmp_path):
    put(queue, instance())
    again = Queue(tmp_path)
    assert waiting(again) == [hash_uid(ONE)] and again.holds(instance(), hashlib.sha256(b"slice").hexdigest())
    again.close()


def test_an_answered_study_waits_again_only_if_something_new_arrives(queue, desk):
    sender = Thread()
    desk.put(instance(), sender)
    answer(queue)
    desk.put(instance(), sender)  # the very same
    assert waiting(queue) == [] and queue.standings()[0].state == "sent"
    desk.put(instance(content=b"another"), sender)
    (study,) = queue.waiting(MODEL, LATER, LATER)
    assert study.inputs == "inputs"  # to see whether what the model looks at has changed
    queue.unchanged(study, MODEL)
    assert waiting(queue) == []


def test_each_model_answers_for_itself(queue):
    put(queue, instance())
    answer(queue)
    assert waiting(queue) == []
    assert [one.study for one in queue.waiting("cd" * 32, LATER, LATER)] == [hash_uid(ONE)]


def test_a_result_that_was_replaced_meanwhile_is_not_taken_for_sent(queue):
    put(queue, instance())
    (study,) = queue.waiting(MODEL, LATER, LATER)
    queue.begin(MODEL, [study])
    queue.predicted(study.study, MODEL, "inputs")
    (unsent,) = queue.unsent(MODEL, LATER, 9)
    put(queue, instance(number=2))
    (study,) = queue.waiting(MODEL, LATER, LATER)
    queue.begin(MODEL, [study])
    queue.predicted(study.study, MODEL, "more inputs")
    queue.sent(unsent, MODEL)
    assert [one.revision for one in queue.unsent(MODEL, LATER, 9)] == [2]


def test_predicting_that_did_not_end_is_counted_and_one_that_was_stopped_is_not(queue):
    put(queue, instance())
    for starts in range(2):
        (study,) = queue.waiting(MODEL, LATER, LATER)
        assert study.starts == starts
        queue.begin(MODEL, [study])
    queue.leave(MODEL)
    assert queue.waiting(MODEL, LATER, LATER)[0].starts == 1


def test_what_is_parked_stays_until_it_is_taken_up_again(queue):
    put(queue, instance())
    queue.begin(MODEL, queue.waiting(MODEL, LATER, LATER))
    queue.park(hash_uid(ONE), MODEL, "it is no volume")
    (standing,) = queue.standings()
    assert (standing.state, standing.reason, standing.uid) == ("parked", "it is no volume", ONE)
    assert waiting(queue) == []
    assert queue.retry() == 1 and waiting(queue) == [hash_uid(ONE)]


def test_sending_in_vain_waits_for_its_time(queue):
    put(queue, instance())
    (study,) = queue.waiting(MODEL, LATER, LATER)
    queue.begin(MODEL, [study])
    queue.predicted(study.study, MODEL, "inputs")
    (unsent,) = queue.unsent(MODEL, 50.0, 9)
    queue.postpone(unsent, MODEL, 60.0, "away")
    assert queue.unsent(MODEL, 59.0, 9) == [] and queue.unsent(MODEL, 60.0, 9)[0].attempts == 1


def test_nothing_is_complete_while_it_is_being_sent(queue, desk):
    done = Event()
    sender, other = Thread(target=done.wait), Thread(target=done.wait)
    sender.start()
    other.start()
    desk.put(instance(), sender)
    desk.put(instance(OTHER), other)
    desk.end(other, is_released=True)
    time.sleep(0.05)
    assert [one.study for one in desk.complete(MODEL)] == [hash_uid(OTHER)]
    desk.end(sender, is_released=True)
    assert {one.study for one in desk.complete(MODEL)} == {hash_uid(ONE), hash_uid(OTHER)}
    done.set()


def test_images_are_removed_when_they_are_answered_and_old_and_not_before(queue, desk, tmp_path):
    desk.put(instance(), Thread())
    (path,) = (tmp_path / "incoming").rglob("*.dcm")
    queue.close_studies([hash_uid(ONE)])
    desk.tidy()
    assert path.read_bytes() == b"slice"
    time.sleep(0.01)
    (study,) = queue.waiting(MODEL, LATER, LATER)
    queue.begin(MODEL, [study])
    queue.predicted(study.study, MODEL, "inputs")
    desk.tidy()
    assert path.exists()
    (unsent,) = queue.unsent(MODEL, LATER, 9)
    queue.sent(unsent, MODEL)
    desk.tidy()
    assert not path.parent.parent.exists()
    desk.put(instance(), Thread())  # sent once more, it is looked at, not trusted to be known
    assert queue.waiting(MODEL, LATER, LATER)[0].inputs == "inputs"


def test_paths_are_made_of_hashes_and_uids_that_are_none_are_refused(tmp_path):
    one = instance()
    assert str(one.path) == f"{hash_uid(one.series)}/{hash_uid(one.uid)}.dcm"
    file = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    for bad in ("../../etc", "Zebulon", "", "1." * 40):
        content = BytesIO()
        with warnings.catch_warnings(action="ignore"):  # pydicom quotes what is wrong on purpose
            file.SeriesInstanceUID = bad
            file.save_as(content)
        with pytest.raises(InputError, match="SeriesInstanceUID"):
            read_instance(content.getvalue())
    with pytest.raises(InputError):
        read_instance(b"no DICOM")


def test_a_file_that_is_no_queue_is_refused(tmp_path):
    (tmp_path / NAME).write_bytes(b"not a database at all" * 100)
    with pytest.raises(ConfigError, match="move it aside"):
        Queue(tmp_path)
    (tmp_path / NAME).unlink()
    base = sqlite3.connect(tmp_path / NAME)
    base.execute("PRAGMA user_version=99")
    base.close()
    with pytest.raises(ConfigError, match="another version"):
        Queue(tmp_path)
