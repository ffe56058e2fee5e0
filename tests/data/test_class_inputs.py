"""What is named to be classified, and what it is known to be, carry the same ids whatever their form."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.cases import Case
from pipeline.data.class_inputs import find_class_inputs, read_references
from pipeline.errors import ConfigError, FaultError


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(128) + b"DICM" if name.endswith(".dcm") else b"")
    return [folder / name for name in names]


def archive(folder: Path, shape=(4, 4), **labels) -> Path:
    """An archive with a part per keyword; its value is the labels."""
    path = folder / "data.npz"
    images = {f"{part}_images": np.ones((len(own), *shape)) for part, own in labels.items()}
    np.savez(path, **images, **{f"{part}_labels": np.array(own) for part, own in labels.items()})
    return path


def ids(paths, num_channels: int = 1) -> list[str]:
    return [case.id for case in find_class_inputs(paths, num_channels)]


def rules(call, *arguments) -> list[str]:
    with pytest.raises(FaultError) as caught:
        call(*arguments)
    return [fault.rule for fault in caught.value.faults]


def test_rows_are_numbered_from_0_in_order(tmp_path):
    path = archive(tmp_path, val=[0] * 12)
    cases = find_class_inputs([path], 1)
    assert [case.id for case in cases] == [str(row) for row in range(12)]
    assert cases[11] == Case("11", "11", (path,), row=("val_images", 11))


def test_of_several_parts_test_is_meant_unless_another_is_named(tmp_path):
    path = archive(tmp_path, train=[0, 0, 0], val=[1, 0], test=[1])
    assert len(ids([path])) == 1
    assert len(ids([Path(f"{path}#train")])) == 3
    assert read_references(path, "ab", False) == {"0": ("b",)}
    assert read_references(Path(f"{path}#val"), "ab", False) == {"0": ("b",), "1": ("a",)}
    assert rules(find_class_inputs, [Path(f"{path}#other")], 1) == ["missing-array"]


def test_a_part_that_is_not_clear_is_refused_with_what_to_write(tmp_path):
    path = archive(tmp_path, train=[0, 0, 0], val=[1, 0])
    with pytest.raises(FaultError, match=r"data\.npz#train, data\.npz#val.*several-arrays"):
        find_class_inputs([path], 1)
    np.savez(path, something=np.ones((2, 4, 4)))
    assert rules(find_class_inputs, [path], 1) == ["missing-array"]
    np.savez(path, images=np.ones((2, 4, 4)))
    assert ids([path]) == ["0", "1"]


def test_an_archive_is_taken_alone_and_must_fit_the_model(tmp_path):
    path = archive(tmp_path, test=[0, 1], shape=(4, 4, 3))
    assert ids([path, path], 3) == ["0", "1"]
    assert rules(find_class_inputs, [path], 1) == ["num-channels"]
    assert rules(find_class_inputs, [path, *touch(tmp_path, "a.png")], 3) == ["npz-not-alone"]


def test_files_folders_and_series_are_cases(tmp_path):
    touch(tmp_path, "in/a.png", "in/b.nii.gz", "in/.c.png", "in/notes.txt", "in/series/1.dcm", "lone/1.dcm")
    (single,) = touch(tmp_path, "d.JPG")
    assert ids([tmp_path / "in", single, tmp_path / "lone"]) == ["a", "b", "series", "d", "lone"]


def test_a_dicomdir_and_a_file_of_dicom_are_cases(tmp_path):
    medium, enhanced = touch(tmp_path, "medium/DICOMDIR", "enhanced.dcm")
    medium.write_bytes(bytes(128) + b"DICM")
    assert ids([medium, enhanced]) == ["medium", "enhanced"]


def test_folders_in_a_folder_are_searched_one_level_deep(tmp_path):
    touch(tmp_path, "in/ill/a.png", "in/ill/scan/1.dcm", "in/sound/a.png", "in/sound/b.png", "in/top.png")
    assert ids([tmp_path / "in"]) == ["top", "ill-a", "scan", "sound-a", "b"]
    touch(tmp_path, "in/sound/more/c.png")
    assert rules(find_class_inputs, [tmp_path / "in"], 1) == ["nested-folder"]


def test_several_channels_are_files_of_one_case_or_one_file(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b.nii.gz", "photo_0007.png")
    cases = {case.id: len(case.images) for case in find_class_inputs([tmp_path], 2)}
    assert cases == {"photo_0007": 1, "a": 2, "b": 1}
    assert ids([tmp_path]) == ["a_0000", "a_0001", "b", "photo_0007"]


def test_all_that_is_wrong_is_told(tmp_path):
    touch(
        tmp_path, "one/a.png", "one/x.gif", "two/b.png", "two/1.dcm", "text.txt", "-rf.png", "c.png", "c.jpg"
    )
    (tmp_path / "empty").mkdir()
    names = ["one", "two", "empty", "text.txt", "-rf.png", "gone.png", "c.png", "c.jpg"]
    assert sorted(rules(find_class_inputs, [tmp_path / name for name in names], 1)) == [
        "duplicate-case",
        "file-type",
        "file-type",
        "missing-file",
        "mixed-formats",
        "no-images",
        "unsafe-id",
    ]


def test_references_have_the_ids_of_inputs(tmp_path):
    touch(tmp_path, "in/ill/a.png", "in/ill/scan/1.dcm", "in/sound/a.png", "in/sound/b.nii.gz")
    references = read_references(tmp_path / "in", ("ill", "sound"), False)
    assert sorted(references) == sorted(ids([tmp_path / "in"]))
    assert references["sound-a"] == ("sound",)


def test_references_in_a_table(tmp_path):
    path = tmp_path / "known.csv"
    path.write_text("case,age,class\na,7,x\nb,8,y; x\nc,9,\n", encoding="utf-8")
    assert read_references(path, "xy", True) == {"a": ("x",), "b": ("y", "x"), "c": ()}
    assert rules(read_references, path, "xy", False) == ["several-classes", "no-class"]
    assert rules(read_references, path, "xz", True) == ["unknown-class"]
    path.write_text("case,class\na,x\na,y\n", encoding="utf-8")
    assert rules(read_references, path, "xy", False) == ["duplicate-case"]
    path.write_text("case,class\n", encoding="utf-8")
    assert rules(read_references, path, "xy", False) == ["no-cases"]
    path.write_text("case,label\na,x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="case and class"):
        read_references(path, "xy", False)
    with pytest.raises(ConfigError, match="manifest-unreadable"):
        read_references(tmp_path / "gone", "xy", False)


def test_references_of_an_archive_must_be_of_the_models_classes(tmp_path):
    path = archive(tmp_path, test=[0, 1, 2])
    assert read_references(path, "abc", False)["2"] == ("c",)
    assert rules(read_references, path, "ab", False) == ["label-range"]
    path = archive(tmp_path, test=[(0, 1), (0, 0)])
    assert read_references(path, "ab", True) == {"0": ("b",), "1": ()}
    assert rules(read_references, path, "ab", False) == ["label-shape"]
