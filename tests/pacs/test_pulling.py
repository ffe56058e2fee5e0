"""A pulled study is whole or not there, though two fetch it at once."""

from threading import Event, Thread

import pytest

from pipeline.errors import InputError
from pipeline.pacs.instances import FoundSeries, Instance
from pipeline.workflows.pulling import pull_study

UIDS = [f"1.2.3.4.{number}" for number in range(4)]
SERIES = FoundSeries("1.2.3", "1.2.3.4", "MR", "", "1", dict.fromkeys(UIDS, ""))


class Archive:
    """A PACS that goes on only when it may."""

    def __init__(self):
        self.is_asked, self.may_go_on = Event(), Event()

    def fetch(self, series, keep):
        for uid in UIDS:
            keep(Instance(series.study, series.uid, uid, b"slice"))
            self.is_asked.set()
            self.may_go_on.wait(60)


def test_another_pull_of_the_same_study_is_refused_and_takes_nothing_away(tmp_path):
    archive, pulled = Archive(), []
    first = Thread(target=lambda: pulled.append(pull_study(archive, tmp_path / "study", [SERIES])))
    first.start()
    assert archive.is_asked.wait(60)
    with pytest.raises(InputError, match="another pull fetches it"):
        pull_study(archive, tmp_path / "study", [SERIES])
    archive.may_go_on.set()
    first.join()
    assert pulled[0].is_new and len(list((tmp_path / "study").rglob("*.dcm"))) == len(UIDS)
    assert not pull_study(archive, tmp_path / "study", [SERIES]).is_new
    assert [path.name for path in tmp_path.iterdir()] == ["study"]
