"""What a person names for prediction becomes cases, or faults that are told together."""

from pathlib import Path

import pytest

from pipeline.data.cases import Case
from pipeline.data.images import find_inputs
from pipeline.errors import InputError


def touch(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(128) + b"DICM" if path.suffix == ".dcm" else b"")
    return paths


def found(paths, num_channels: int = 1) -> dict[str, list[str]]:
    cases = find_inputs(paths, num_channels)
    assert all(case.patient == case.id and case.label is None for case in cases)
    return {case.id: [image.name for image in case.images] for case in cases}


def rules(paths, num_channels: int = 1) -> list[str]:
    with pytest.raises(InputError) as caught:
        find_inputs(paths, num_channels)
    return [fault.rule for fault in caught.value.faults]


def test_files_and_folders(tmp_path):
    files = touch(tmp_path, "a.nii", "b.nii.gz", "c_0000.nii.gz", "d.NII.GZ")
    touch(tmp_path / "more", "e.nii.gz", "f_0001.nii.gz", ".hidden.nii.gz", "notes.txt")
    assert found([*files, tmp_path / "more"]) == {
        "a": ["a.nii"],
        "b": ["b.nii.gz"],
        "c": ["c_0000.nii.gz"],
        "d": ["d.NII.GZ"],
        "e": ["e.nii.gz"],
        "f_0001": ["f_0001.nii.gz"],
    }


def test_dicom_series(tmp_path, monkeypatch):
    touch(tmp_path / "T1 post", "1.dcm", "2.dcm")
    assert found([tmp_path / "T1 post"]) == {"T1 post": ["T1 post"]}
    monkeypatch.chdir(tmp_path / "T1 post")
    assert find_inputs([Path()], 1) == [Case("T1 post", "T1 post", (Path(),))]


def test_channels_are_grouped_in_order_and_single_files_serve(tmp_path):
    touch(tmp_path, "a_0001.nii.gz", "a_0000.nii.gz", "b.nii.gz")
    assert found([tmp_path], 2) == {"b": ["b.nii.gz"], "a": ["a_0000.nii.gz", "a_0001.nii.gz"]}


def test_the_same_path_twice_is_one_input(tmp_path):
    (file,) = touch(tmp_path, "a.nii.gz")
    assert found([file, file, tmp_path]) == {"a": ["a.nii.gz"]}


def test_channels_that_do_not_fit_are_faults(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz", "b_0002.nii.gz", "c_0001.nii.gz")
    touch(tmp_path, "d_0001.nii.gz", "d_0002.nii.gz")
    touch(tmp_path / "series", "1.dcm")
    assert rules([tmp_path, tmp_path / "series"], 2) == ["num-channels"] * 5


def test_all_faults_are_told(tmp_path):
    touch(tmp_path, "one/a.nii.gz", "two/a.nii", "mixed/x.nii.gz", "mixed/y.dcm", "text.txt", "-rf.nii.gz")
    (tmp_path / "empty").mkdir()
    names = ["one", "two", "mixed", "empty", "text.txt", "-rf.nii.gz", "gone.nii.gz", "n" * 300]
    assert sorted(rules([tmp_path / name for name in names])) == [
        "duplicate-case",
        "file-type",
        "missing-file",
        "missing-file",
        "mixed-formats",
        "no-images",
        "unsafe-id",
    ]
