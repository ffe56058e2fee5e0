"""Studies to a real PACS and back, by every way that there is."""

import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pydicom
import pytest

from pipeline.data.dicom import list_dicom_files, read_series
from pipeline.data.synthetic.series import write_series
from pipeline.errors import InputError
from pipeline.pacs.address import parse_address
from pipeline.pacs.connecting import connect
from pipeline.pacs.instances import Query
from pipeline.volume import Grid, Volume
from pipeline.workflows.pulling import pull_study

BRAIN = Path(__file__).parents[2] / "../shared/data/dicom/brain/T2reg"
SHAPE = (12, 10, 5)

pytestmark = pytest.mark.slow


@pytest.fixture
def series(tmp_path):
    """A made-up series of a patient with a name."""
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    affine = np.diag([-1.5, -1.5, 3.0, 1.0])
    affine[:3, 3] = 20, -30, 7
    write_series(tmp_path / "series", Volume(array, Grid(SHAPE, affine)), description="T2 ax")
    for path in list_dicom_files(tmp_path / "series"):
        file = pydicom.dcmread(path)
        file.PatientName, file.PatientID, file.AccessionNumber = "Quackenbush^Zebulon", "MRN7745321", "A17"
        file.save_as(path)
    return tmp_path / "series"


def study_of(folder):
    return pydicom.dcmread(next(folder.rglob("*.dcm")), stop_before_pixels=True).StudyInstanceUID


def contents(folder):
    return sorted(pydicom.dcmread(path).to_json() for path in folder.rglob("*.dcm"))


ways = pytest.mark.parametrize(
    ("kind", "more"),
    [("dimse", ()), ("dimse", ("--receive-at", "127.0.0.1:11112")), ("web", ())],
    ids=["C-GET", "C-MOVE", "DICOMweb"],
)


@ways
def test_what_was_pushed_comes_back_the_same(clinseg, orthanc, series, tmp_path, kind, more):
    sources = [series] + ([BRAIN] if BRAIN.exists() else [])
    for source in sources:
        answer = clinseg("pacs", "push", source, "--to", getattr(orthanc, kind))
        assert answer.code == 0, answer.err
        assert answer.out.startswith(f"{len(list(source.iterdir()))} files")
        answer = clinseg(
            "pacs", "pull", getattr(orthanc, kind), "--study", study_of(source), "-o", tmp_path / "out", *more
        )
        assert answer.code == 0, answer.err
        folder = Path(answer.out.split(":")[0])
        assert contents(folder) == contents(source)
        before, after = (read_series(path).volumes[0] for path in (source, folder))
        assert np.array_equal(before.array, after.array) and before.grid.is_close(after.grid, 1e-9)
        said = (answer.out + answer.err + str(list(folder.rglob("*")))).lower()
        assert not [name for name in ("quackenbush", "zebulon", "mrn7745321") if name in said]


def test_a_foreign_client_finds_what_was_pushed(clinseg, orthanc, series):
    assert clinseg("pacs", "push", series, "--to", orthanc.dimse).code == 0
    command = ["findscu", "-S", "-aec", "ORTHANC", "127.0.0.1", str(orthanc.dicom)]
    keys = [
        "QueryRetrieveLevel=SERIES",
        f"StudyInstanceUID={study_of(series)}",
        "NumberOfSeriesRelatedInstances",
    ]
    command += [part for key in keys for part in ("-k", key)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"[{SHAPE[2]} ]" in found.stdout + found.stderr


@ways
def test_fewer_instances_than_were_announced_leave_nothing(clinseg, orthanc, series, tmp_path, kind, more):
    assert clinseg("pacs", "push", series, "--to", orthanc.dimse).code == 0
    pacs = connect(
        parse_address(getattr(orthanc, kind), "source"), receive_at=("127.0.0.1", 11112) if more else None
    )
    (found,) = pacs.find(Query(patient="MRN7745321"))
    assert len(found.instances) == SHAPE[2]
    path = f"http://127.0.0.1:{orthanc.http}/instances/{orthanc.instances('MR')[2]}"
    urllib.request.urlopen(urllib.request.Request(path, method="DELETE")).close()
    target = tmp_path / "out/study"
    with pytest.raises(InputError, match="1 of 5 announced instances") as caught:
        pull_study(pacs, target, [found])
    assert caught.value.faults[0].rule == "incomplete"
    assert list(target.parent.iterdir()) == []


def test_what_is_there_stays_and_only_what_was_meant_is_fetched(clinseg, orthanc, series, tmp_path):
    assert clinseg("pacs", "push", series, "--to", orthanc.web).code == 0
    ask = ("pacs", "pull", orthanc.dimse, "--accession", "A17", "-o", tmp_path / "out")
    assert "DWI" not in clinseg(*ask, "--series", "t2*").out
    assert "there already" in clinseg(*ask).out
    (path, *_) = (tmp_path / "out").rglob("*.dcm")
    path.unlink()
    assert "move it aside" in clinseg(*ask).err
    answer = clinseg(*ask[:-1], tmp_path / "other", "--series", "DWI")
    assert answer.code == 3 and "T2 ax" in answer.err and list((tmp_path / "other").iterdir()) == []
    answer = clinseg("pacs", "pull", orthanc.dimse, "--patient", "NOBODY", "-o", tmp_path / "none")
    assert answer.code == 3 and not (tmp_path / "none").exists()
    answer = clinseg("pacs", "push", series, "--to", "dicom://OTHER@127.0.0.1:1")
    assert answer.code == 5 and "cannot be reached" in answer.err
