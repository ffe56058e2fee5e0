"""Images are read and judged as those of a segmentation, and copies of them are found wherever they lie."""

import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from pipeline.config import ClassificationDataSection
from pipeline.data.case_images import read_case_images, read_case_with_warnings
from pipeline.data.cases import Case
from pipeline.data.class_checks import check_class_study, find_duplicates
from pipeline.data.class_study import ClassStudy, read_class_study
from pipeline.data.folds import Split, split_cases
from pipeline.errors import InputError

SHARED = Path(__file__).parents[2] / "../shared/data/medmnist"
IMAGE = np.random.default_rng(0).integers(0, 200, (6, 5)).astype(np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        nib.save(nib.Nifti1Image(array, np.eye(4), dtype=array.dtype), path)
    return path


def rows(path: Path, *images: np.ndarray) -> list[Case]:
    np.savez(path, x=np.stack(images))
    names = [f"{path.stem}-{n}" for n in range(len(images))]
    return [Case(name, name, (path,), classes=("a",), row=("x", n)) for n, name in enumerate(names)]


def case(case_id: str, path: Path, name: str = "a", **changes) -> Case:
    return Case(case_id, case_id, (path,), classes=(name,), **changes)


def study(*cases: Case) -> ClassStudy:
    return ClassStudy(cases, ("a", "b"), ("image",), is_multi_label=False)


def test_an_image_is_the_same_in_every_form(tmp_path):
    (row,) = rows(tmp_path / "a.npz", IMAGE)
    forms = [
        row,
        case("png", save(tmp_path / "a.png", IMAGE)),
        case("nii", save(tmp_path / "a.nii.gz", IMAGE)),
    ]
    for form in forms:
        (volume,) = read_case_images(form, 1)
        assert volume.array.shape == (6, 5, 1)
        assert np.array_equal(volume.array[..., 0], IMAGE)
        assert np.array_equal(volume.grid.affine, np.eye(4))


def test_all_faults_of_a_case_are_told_and_warnings_kept(tmp_path):
    missing = tmp_path / "gone.png"
    broken = save(tmp_path / "a.png", IMAGE)
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(InputError) as caught:
        read_case_images(Case("a", "a", (missing, broken)), 2)
    assert [fault.rule for fault in caught.value.faults] == ["missing-file", "picture-damaged"]
    (row,) = rows(tmp_path / "a.npz", np.full((6, 5), 7))
    assert [fault.rule for fault in read_case_with_warnings(row, 1).warnings] == ["constant-image"]
    with pytest.raises(InputError, match="num-channels"):
        read_case_images(row, 3)


def test_a_check_reads_everything_and_stops_at_nothing(tmp_path):
    image = save(tmp_path / "a.nii.gz", IMAGE)
    cases = (
        case("sound", image),
        case("gone", tmp_path / "gone.png"),
        case("flat", save(tmp_path / "e.png", IMAGE.T * 0), "b"),
    )
    calls = []
    report = check_class_study(study(*cases), [Split(cases, ())], lambda: calls.append(1))
    assert [(fault.where.split("/")[-1], fault.rule) for fault in report.errors] == [
        ("gone.png", "missing-file"),
    ]
    assert [(fault.where, fault.rule) for fault in report.warnings] == [("flat", "constant-image")]
    assert len(calls) == report.num_cases == 3


def test_copies_across_training_and_validation_are_named(tmp_path):
    """Under another name, in another format and type."""
    first, other = rows(tmp_path / "a.npz", IMAGE, IMAGE[::-1])
    copy = case("copy", save(tmp_path / "b.nii.gz", IMAGE.astype(np.float32)))
    (fault,) = find_duplicates([first, other, copy], Split((first, other), (copy,)), 1)
    assert (fault.where, fault.rule) == ("copy", "duplicate-image")
    assert "training case a-0" in fault.message
    assert find_duplicates([first, other, copy], Split((first, copy), (other,)), 1) == []


def test_copies_of_different_classes_are_said_to_be_so(tmp_path):
    cases = [
        case(name, save(tmp_path / f"{name}.png", IMAGE), own) for name, own in zip("xyz", "aab", strict=True)
    ]
    (across,) = find_duplicates(cases, Split((cases[0], cases[1]), (cases[2],)), 1)
    assert "x, y" in across.message
    assert "z is b; x is a; y is a" in across.message
    beside = find_duplicates(cases, Split((*cases,), ()), 1)
    assert [(fault.where, fault.rule) for fault in beside] == [("x, y, z", "contradicting-classes")]


def test_images_that_differ_in_one_voxel_or_in_shape_are_no_copies(tmp_path):
    changed = IMAGE.copy()
    changed[5, 4] += 1
    cases = [
        *rows(tmp_path / "a.npz", IMAGE, changed),
        *rows(tmp_path / "b.npz", IMAGE.reshape((5, 6), order="F")),
    ]
    assert find_duplicates(cases, Split((cases[0],), tuple(cases[1:])), 1) == []


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/medmnist")
def test_the_copies_in_a_real_archive_are_found_within_seconds():
    section = ClassificationDataSection(manifest=SHARED / "pneumoniamnist.npz")
    real = read_class_study(section)
    start = time.process_time()
    report = check_class_study(real, [split_cases(real.cases, section)])
    assert time.process_time() - start < 10
    assert report.errors == ()
    assert [fault.rule for fault in report.warnings] == ["duplicate-image"] * 8
    assert "train-269, train-1100" in next(f.message for f in report.warnings if f.where == "val-253")
