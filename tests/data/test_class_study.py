"""An archive, a folder and a table give the same kind of study, or all that is wrong with them at once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import ClassificationDataSection
from pipeline.data.cases import Case
from pipeline.data.class_study import ClassStudy, check_split, read_class_study
from pipeline.data.folds import split_cases
from pipeline.errors import ConfigError, FaultError, InputError

SHARED = Path(__file__).parents[2] / "../shared/data/medmnist"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/medmnist")


def section(manifest: Path, **settings) -> ClassificationDataSection:
    return ClassificationDataSection(manifest=manifest, **settings)


def read(manifest: Path, **settings) -> ClassStudy:
    return read_class_study(section(manifest, **settings))


def faults_of(manifest: Path, **settings) -> list:
    with pytest.raises(FaultError) as caught:
        read(manifest, **settings)
    return list(caught.value.faults)


def rules(manifest: Path, **settings) -> list[str]:
    return [fault.rule for fault in faults_of(manifest, **settings)]


def archive(folder: Path, train=(0, 1, 1), val=(1, 0), shape=(4, 4), **changes) -> Path:
    """Labels may be numbers or rows of them; `changes` replaces or, by None, drops an array."""
    arrays = {}
    for part, labels in (("train", train), ("val", val), ("test", (0, 1))):
        arrays[f"{part}_images"] = np.random.default_rng(0).integers(0, 255, (len(labels), *shape), np.uint8)
        arrays[f"{part}_labels"] = np.array(labels, np.uint8).reshape(len(labels), -1)
    arrays |= changes
    path = folder / "data.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def picture(path: Path, seed: int = 0, colour: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (5, 4, 3) if colour else (5, 4)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)).save(path)
    return path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(128) + b"DICM" if name.endswith(".dcm") else b"")


def table(folder: Path, text: str) -> Path:
    touch(folder, "a.png", "b.png", "c.nii.gz", "organ.nii.gz")
    (folder / "series").mkdir(exist_ok=True)
    path = folder / "cases.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_of_an_archive_are_cases_and_its_validation_part_is_fold_0(tmp_path):
    path = archive(tmp_path)
    study = read(path)
    assert study == ClassStudy(
        (
            Case("train-0", "train-0", (path,), fold=1, classes=("0",), row=("train_images", 0)),
            Case("train-1", "train-1", (path,), fold=1, classes=("1",), row=("train_images", 1)),
            Case("train-2", "train-2", (path,), fold=1, classes=("1",), row=("train_images", 2)),
            Case("val-0", "val-0", (path,), fold=0, classes=("1",), row=("val_images", 0)),
            Case("val-1", "val-1", (path,), fold=0, classes=("0",), row=("val_images", 1)),
        ),
        classes=("0", "1"),
        channels=("image",),
        is_multi_label=False,
    )
    split = split_cases(study.cases, section(path, fold=0))
    assert {case.row[0] for case in split.training} == {"train_images"}
    assert {case.row[0] for case in split.validation} == {"val_images"}


def test_a_new_split_knows_no_folds_and_neither_does_an_archive_without_validation(tmp_path):
    assert {case.fold for case in read(archive(tmp_path), split="new").cases} == {None}
    path = archive(tmp_path, val_images=None, val_labels=None)
    assert [case.fold for case in read(path).cases] == [None] * 3


@pytest.mark.parametrize("shape, channels", [((4, 4, 3), 3), ((4, 4, 5), 1), ((4, 4), 1)])
def test_a_last_axis_of_three_is_colour(shape, channels, tmp_path):
    assert len(read(archive(tmp_path, shape=shape)).channels) == channels


def test_classes_of_an_archive_are_named_in_the_order_of_their_numbers(tmp_path):
    study = read(archive(tmp_path), classes=("sound", "ill"))
    assert [case.classes for case in study.cases] == [("sound",), ("ill",), ("ill",), ("ill",), ("sound",)]
    assert study.classes == ("sound", "ill")


def test_labels_may_lie_in_one_row(tmp_path):
    path = archive(tmp_path, train_labels=np.array([1, 0, 1]))
    assert [case.classes for case in read(path).cases[:3]] == [("1",), ("0",), ("1",)]


def test_a_row_can_be_of_several_classes_or_of_none(tmp_path):
    path = archive(tmp_path, train=[(0, 0, 0), (1, 0, 1), (0, 1, 0)], val=[(0, 1, 0)])
    study = read(path, multi_label=True, classes=("a", "b", "c"))
    assert [case.classes for case in study.cases] == [(), ("a", "c"), ("b",), ("b",)]
    assert study.is_multi_label
    assert read(path, multi_label=True).classes == ("0", "1", "2")
    assert read(archive(tmp_path), multi_label=True).classes == ("0",)


@pytest.mark.parametrize(
    "changes, settings, expected",
    [
        ({"train": (0, 1, 2)}, {"classes": ("a", "b")}, ["label-range"]),
        ({"train_labels": np.array([0, -1, 1])}, {}, ["label-range"]),
        ({"train_labels": np.array([0, 1, 2**40])}, {}, ["label-range"]),
        ({"train": (0, 2, 2), "val": (0,)}, {}, ["empty-class"]),
        ({"train": (0, 0, 0), "val": (0,)}, {}, ["too-few-classes"]),
        ({"train": [(0, 1), (1, 0)], "val": [(0, 1)]}, {}, ["label-shape", "label-shape"]),
        ({"train": (0, 2), "val": (1,)}, {"multi_label": True}, ["label-range"]),
        ({"train": [(0, 1)], "val": [(1, 0)]}, {"multi_label": True, "classes": ("a",)}, ["label-shape"] * 2),
        ({"train_labels": np.array([[0], [1]])}, {}, ["label-count"]),
        ({"train_labels": np.array([0.0, 1.0, 1.0])}, {}, ["label-shape"]),
        ({"train_labels": np.zeros((3, 1, 1), int)}, {}, ["label-shape"]),
        ({"train_labels": None}, {}, ["missing-array"]),
        ({"train_labels": np.array([0, None], object)}, {}, ["pickled"]),
        ({"train_images": None}, {}, ["manifest-format"]),
        ({"train_images": np.zeros((3, 16))}, {}, ["image-shape"]),
        ({"train_images": np.zeros((3, 4, 4, 4, 3))}, {}, ["image-shape"]),
        ({"train_images": np.zeros((3, 4, 4, 3))}, {}, ["image-shape"]),
        ({}, {"classes": ("a", "a")}, ["class-name"]),
        ({}, {"classes": ("a", "b/c")}, ["class-name"]),
    ],
)
def test_bad_archive(changes, settings, expected, tmp_path):
    assert rules(archive(tmp_path, **changes), **settings) == expected


def test_rows_that_are_wrong_are_named(tmp_path):
    path = archive(tmp_path, train=(0, 7, 1, 9), val=(0, 1, 5))
    told = [fault.message for fault in faults_of(path, classes=("a", "b"))]
    assert ["1 (7), 3 (9)" in told[0], "2 (5)" in told[1]] == [True, True]


def test_a_folder_of_folders(tmp_path):
    picture(tmp_path / "sound/b.png")
    picture(tmp_path / "ill/a.jpg", 1)
    touch(tmp_path, "ill/scan.nii.gz", "ill/series/1.dcm", "ill/.hidden.png", ".git/x.png", "README.md")
    touch(tmp_path, "sound/README.md")
    study = read(tmp_path)
    assert study.classes == ("ill", "sound")
    assert {case.id: (case.classes, case.images) for case in study.cases} == {
        "a": (("ill",), (tmp_path / "ill/a.jpg",)),
        "scan": (("ill",), (tmp_path / "ill/scan.nii.gz",)),
        "series": (("ill",), (tmp_path / "ill/series",)),
        "b": (("sound",), (tmp_path / "sound/b.png",)),
    }
    assert study.channels == ("image",)
    assert read(tmp_path, classes=("sound", "ill")).classes == ("sound", "ill")


def test_names_that_occur_twice_take_their_classs_name(tmp_path):
    for name in ("x/1.png", "y/1.png", "y/2.png"):
        picture(tmp_path / name)
    assert [case.id for case in read(tmp_path).cases] == ["x-1", "y-1", "2"]
    picture(tmp_path / "x/1.jpg")
    assert rules(tmp_path) == ["duplicate-case"]


def test_channels_are_those_of_the_first_image_that_can_be_read(tmp_path):
    touch(tmp_path, "x/1.png")
    picture(tmp_path / "x/2.png", colour=True)
    picture(tmp_path / "y/3.png", colour=True)
    assert read(tmp_path).channels == ("red", "green", "blue")


def test_all_that_is_wrong_with_a_folder_is_told(tmp_path):
    picture(tmp_path / "a/1.png")
    touch(tmp_path, "b/1.dcm", "c/x.tiff", "c/deep/deeper/2.png", "d/1.dcm", "d/2.png")
    assert sorted(rules(tmp_path)) == ["file-type", "loose-dicom", "mixed-formats", "nested-folder"]


def test_a_folder_without_a_case_of_a_class(tmp_path):
    picture(tmp_path / "a/1.png")
    picture(tmp_path / "b/2.png")
    (tmp_path / "c").mkdir()
    assert rules(tmp_path) == ["empty-class"]
    assert rules(tmp_path, classes=("a", "b", "d")) == ["empty-class"]
    assert rules(tmp_path, classes=("a", "c")) == ["unknown-class"]
    assert rules(tmp_path / "a") == ["no-cases", "too-few-classes"]


def test_a_table(tmp_path):
    text = (
        "case,patient,image,label,class,fold\nfirst,p1,c.nii.gz,organ.nii.gz,ill,2\nsecond,,series,,sound,\n"
    )
    path = table(tmp_path, text)
    assert read(path).cases == (
        Case("first", "p1", (tmp_path / "c.nii.gz",), tmp_path / "organ.nii.gz", 2, classes=("ill",)),
        Case("second", "second", (tmp_path / "series",), classes=("sound",)),
    )
    assert {case.fold for case in read(path, split="new").cases} == {None}


def test_a_table_with_several_classes_and_channels(tmp_path):
    text = "case,image_t1,image_t2,class\na,a.png,b.png,x; y\nb,b.png,a.png,\n"
    path = table(tmp_path, text)
    study = read(path, multi_label=True)
    assert [case.classes for case in study.cases] == [("x", "y"), ()]
    assert study.channels == ("t1", "t2")
    assert rules(path) == ["several-classes", "no-class"]


def test_all_that_is_wrong_with_a_table_is_told(tmp_path):
    text = (
        "case,image,class\n"
        "a,a.png,ill\n"
        "a,b.png,sound\n"
        "../b,gone.png,sound\n"
        "c,c.nii.gz,unheard\n"
        "d,a.png,\n"
        "e,a.png\n"
    )
    assert sorted(rules(table(tmp_path, text), classes=("ill", "sound"))) == [
        "duplicate-case",
        "manifest-format",
        "missing-file",
        "no-class",
        "unknown-class",
        "unsafe-id",
    ]


def test_no_manifest(tmp_path):
    touch(tmp_path, "a.txt", "broken.npz")
    path = table(tmp_path, "case,image\na,a.png\n")
    for manifest, rule in (
        (tmp_path / "gone", "manifest-unreadable"),
        (tmp_path / "a.txt", "manifest-format"),
        (path, "manifest-format"),
    ):
        with pytest.raises(ConfigError, match=rule):
            read(manifest)
    with pytest.raises(InputError, match="npz-damaged"):
        read(tmp_path / "broken.npz")
    assert rules(table(tmp_path, "case,image,class\n")) == ["no-cases", "too-few-classes"]


def test_a_class_that_no_training_case_is_of_is_refused(tmp_path):
    study = read(archive(tmp_path, train=(0, 0), val=(0, 1)))
    split = split_cases(study.cases, section(tmp_path, fold=0))
    with pytest.raises(ConfigError, match=r"class 1.*untrained-class"):
        check_split(study, split)
    check_split(study, split_cases(study.cases, section(tmp_path, fold="none")))


@needs_shared
@pytest.mark.parametrize(
    "name, sizes", [("pneumoniamnist", (1214, 3494, 135, 389)), ("adrenalmnist3d", (929, 259, 76, 22))]
)
def test_real_archives(name, sizes):
    counts = Counter((case.fold, case.classes[0]) for case in read(SHARED / f"{name}.npz").cases)
    assert tuple(counts[key] for key in ((1, "0"), (1, "1"), (0, "0"), (0, "1"))) == sizes
