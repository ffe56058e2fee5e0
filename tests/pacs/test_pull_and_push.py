"""Studies to a real PACS and back, by every way that there is."""

import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest

from pipeline.data.dicom import list_dicom_files, read_series
from pipeline.data.synthetic.series import write_series
from pipeline.volume import Grid, Volume

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
