"""The queue and the desk in front of it: what is complete, what is answered, what is told."""

import hashlib
import sqlite3
import time
import warnings
from contextlib import closing
from io import BytesIO
from threading import Event, Thread

import pydicom
import pytest
from pydicom.data import get_testdata_file

from pipeline.errors import ConfigError, InputError, ResourceError
from pipeline.pacs.desk import BROKEN_OFF, Desk, alone_in
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


def answer(queue, model=MODEL):
    """Predicts and sends what waits."""
    (study,) = queue.waiting(model, LATER, LATER)
    queue.begin(model, [study])
    queue.predicted(study.study, model, "inputs")
    (unsent,) = queue.unsent(model, LATER, 9)
    queue.sent(unsent, model)


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


def test_each_new_instance_begins_the_wait_anew(queue):
    put(queue, instance(), now=100.0)
    put(queue, instance(number=2), now=200.0)
    assert waiting(queue, abandoned=199.0) == [] and waiting(queue, abandoned=200.0) == [hash_uid(ONE)]


def test_what_fails_halfway_leaves_nothing(queue):
    with pytest.raises(ResourceError):
        queue.put(instance(), object(), 100.0)  # known once its study is entered already
    assert queue.standings() == []
    put(queue, instance())
    assert waiting(queue) == [hash_uid(ONE)]


def test_what_could_not_be_written_is_not_entered(queue, desk, tmp_path):
    (tmp_path / "incoming").write_bytes(b"in the way")
    with pytest.raises(ResourceError):
        desk.put(instance(), Thread())
    assert queue.standings() == []
    (tmp_path / "incoming").unlink()
    desk.put(instance(), Thread())
    assert waiting(queue) == [hash_uid(ONE)] and list((tmp_path / "incoming").rglob("*.dcm"))


def test_only_an_answer_that_was_sent_stays_one_where_nothing_changed(queue):
    put(queue, instance())
    (study,) = queue.waiting(MODEL, LATER, LATER)
    queue.begin(MODEL, [study])
    queue.unchanged(study, MODEL)
    assert waiting(queue) == [hash_uid(ONE)]
    put(queue, instance(number=2))
    (newer,) = queue.waiting(MODEL, LATER, LATER)
    queue.unchanged(newer, MODEL)
    assert queue.waiting(MODEL, LATER, LATER)[0].starts == 0  # none of what lies there now


def test_a_new_answer_is_sent_at_once_though_the_old_one_waited(queue):
    put(queue, instance())
    queue.begin(MODEL, queue.waiting(MODEL, LATER, LATER))
    queue.predicted(hash_uid(ONE), MODEL, "inputs")
    queue.postpone(queue.unsent(MODEL, 50.0, 9)[0], MODEL, 1000.0, "away")
    put(queue, instance(number=2))
    queue.begin(MODEL, queue.waiting(MODEL, LATER, LATER))
    queue.predicted(hash_uid(ONE), MODEL, "more inputs")
    (unsent,) = queue.unsent(MODEL, 50.0, 9)
    assert unsent.attempts == 0


def test_an_answer_that_is_gone_is_predicted_again(queue):
    put(queue, instance())
    queue.begin(MODEL, queue.waiting(MODEL, LATER, LATER))
    queue.predicted(hash_uid(ONE), MODEL, "inputs")
    queue.lost(queue.unsent(MODEL, LATER, 9)[0], MODEL)
    assert queue.unsent(MODEL, LATER, 9) == [] and waiting(queue) == [hash_uid(ONE)]


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


@pytest.fixture
def senders():
    """Two that live until the test is over, however it ends."""
    done = Event()
    threads = [Thread(target=done.wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield threads
    done.set()
    for thread in threads:
        thread.join()


def test_nothing_is_complete_while_it_is_being_sent(queue, desk, senders):
    sender, other = senders
    desk.put(instance(), sender)
    desk.put(instance(OTHER), other)
    desk.end(other, is_released=True)
    time.sleep(0.05)
    assert [one.study for one in desk.complete(MODEL)] == [hash_uid(OTHER)]
    desk.end(sender, is_released=True)
    assert {one.study for one in desk.complete(MODEL)} == {hash_uid(ONE), hash_uid(OTHER)}


def test_the_sender_that_ends_first_closes_nothing_that_another_still_sends(queue, desk, senders):
    sender, other = senders
    desk.put(instance(), sender)
    desk.put(instance(number=2), other)
    desk.end(other, is_released=True)
    assert waiting(queue, abandoned=0.0) == []  # open still
    desk.end(sender, is_released=True)
    assert waiting(queue, abandoned=0.0) == [hash_uid(ONE)]


def test_a_sender_that_ended_without_a_word_broke_off(queue, tmp_path):
    told = []
    desk = Desk(queue, tmp_path / "incoming", settle_s=0.001, keep_s=1.0, tell=told.append)
    sender = Thread(target=lambda: desk.put(instance(), sender))
    sender.start()
    sender.join()
    time.sleep(2 * BROKEN_OFF * 0.001)
    assert [one.study for one in desk.complete(MODEL)] == [hash_uid(ONE)]
    assert len(told) == 1 and "broke off" in told[0]


def test_silence_while_nobody_listened_does_not_count(queue, tmp_path):
    put(queue, instance(), now=100.0)  # by a listener before
    desk = Desk(queue, tmp_path / "incoming", settle_s=0.1, keep_s=1.0, tell=lambda text: None)
    assert desk.complete(MODEL) == []
    time.sleep(1.2 * BROKEN_OFF * 0.1)
    assert [one.study for one in desk.complete(MODEL)] == [hash_uid(ONE)]


def test_a_folder_has_one_listener_and_nothing_half_written(tmp_path):
    folder = tmp_path / "listener"
    with alone_in(folder):
        assert folder.stat().st_mode & 0o777 == 0o700
        with pytest.raises(ConfigError, match="another listener"), alone_in(folder):
            pass
        half = folder / "incoming" / ".1-partial-slice.dcm"
        half.parent.mkdir()
        half.write_bytes(b"sl")
        (folder / "incoming" / "whole.dcm").write_bytes(b"slice")
    with alone_in(folder):
        assert [path.name for path in (folder / "incoming").iterdir()] == ["whole.dcm"]


def test_images_are_kept_while_something_new_is_not_answered(queue, desk, tmp_path):
    desk.put(instance(), Thread())
    answer(queue)
    desk.put(instance(number=2), Thread())
    time.sleep(0.01)
    desk.tidy()
    assert len(list((tmp_path / "incoming").rglob("*.dcm"))) == 2


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


def test_what_is_arriving_is_not_removed(queue, desk, senders, tmp_path):
    desk.put(instance(), Thread())
    answer(queue)
    sender, _ = senders
    desk.put(instance(), sender)  # the very same; more may follow
    time.sleep(0.01)
    desk.tidy()
    assert list((tmp_path / "incoming").rglob("*.dcm"))
    desk.end(sender, is_released=True)
    desk.tidy()
    assert not list((tmp_path / "incoming").rglob("*.dcm"))


def test_a_new_model_is_asked_for_nothing_that_was_removed(queue):
    put(queue, instance())
    answer(queue)
    assert queue.forget(LATER, ()) == [hash_uid(ONE)]
    assert queue.waiting("cd" * 32, LATER, LATER) == []


def test_what_a_new_model_answered_is_removed_whatever_the_old_one_said_of_less(queue):
    put(queue, instance())
    answer(queue)
    put(queue, instance(number=2))
    assert queue.forget(LATER, ()) == []
    answer(queue, "cd" * 32)
    assert queue.forget(LATER, ()) == [hash_uid(ONE)]


def test_a_queue_of_the_first_version_goes_on(queue, tmp_path):
    put(queue, instance())
    queue.begin(MODEL, queue.waiting(MODEL, LATER, LATER))
    queue.predicted(hash_uid(ONE), MODEL, "inputs")
    with closing(sqlite3.connect(tmp_path / NAME)) as base:
        base.executescript("ALTER TABLE answers DROP COLUMN refusals; PRAGMA user_version=1;")
    again = Queue(tmp_path)
    assert [(one.study, one.refusals) for one in again.unsent(MODEL, LATER, 9)] == [(hash_uid(ONE), 0)]
    again.close()


def test_paths_are_made_of_hashes_and_uids_that_are_none_are_refused(tmp_path):
    one = instance()
    assert str(one.path) == f"{hash_uid(one.series)}/{hash_uid(one.uid)}.dcm"
    file = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    for bad in ("../../etc", "Zebulon", "", "1." * 40, "1" + ".2" * 32):
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
