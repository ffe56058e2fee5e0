"""A label map tells where to look, or why it cannot; what is prepared with one is what it says."""

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.config import ClassificationDataSection, ClassificationPreprocessingSection
from pipeline.data.cases import Case
from pipeline.data.class_images import prepare_class_images
from pipeline.data.class_study import ClassStudy, read_class_study
from pipeline.data.images import read_image
from pipeline.data.regions import label_map_regions
from pipeline.errors import FaultError, InputError

IMAGE = np.random.default_rng(0).normal(size=(8, 7, 6)).astype(np.float32)


def label_map():
    labels = np.zeros(IMAGE.shape, dtype=np.uint8)
    labels[2:4, 2:5, 1:3], labels[5:7, 2:5, 1:3] = 1, 2
    return labels


def write(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def case(tmp_path):
    image, label = write(tmp_path / "a.nii.gz", IMAGE), write(tmp_path / "a_label.nii.gz", label_map())
    return Case("a", "a", (image,), label, classes=("x",))


def find(case, *values):
    return label_map_regions(values).find(case, read_image(case.images[0]))


def test_the_region_is_what_is_named_or_all_that_is_not_background(case):
    for values in ((1,), (2,), (1, 2)):
        assert np.array_equal(find(case, *values), np.isin(label_map(), values))
    assert np.array_equal(find(case), label_map() > 0)


@pytest.mark.parametrize(
    "label, values, rule",
    [
        (None, (), "missing-label"),
        (label_map(), (3,), "region-not-found"),
        (np.zeros_like(label_map()), (), "region-not-found"),
        (label_map()[1:], (), "shape-mismatch"),
        (label_map() * 0.5, (), "label-not-whole"),
    ],
)
def test_what_tells_no_region_is_refused_with_the_case(case, tmp_path, label, values, rule):
    path = None if label is None else write(tmp_path / "wrong.nii.gz", label)
    with pytest.raises(InputError, match=rf"({case.id}|wrong).*\[{rule}\]"):
        find(Case("a", "a", case.images, path), *values)


def prepare(cases, folder, **settings):
    section = ClassificationPreprocessingSection(size=(4, 4, 4), **settings)
    data = ClassificationDataSection(manifest=folder, cache_dir=folder / "cache", region_from="label_map")
    study = ClassStudy(tuple(cases), ("x", "y"), ("image",), False)
    return prepare_class_images(cases, study, section, data, label_map_regions([1]))


def test_what_is_cached_follows_the_label_map_and_the_settings(case, tmp_path):
    (first,) = prepare([case], tmp_path, region="both", fit="crop")
    assert first.image.shape == (2, 4, 4, 4) and first.image[1].sum() == 2 * 3 * 2
    files = set((tmp_path / "cache").iterdir())
    prepare([case], tmp_path, region="both", fit="crop")
    assert set((tmp_path / "cache").iterdir()) == files
    (wider,) = prepare([case], tmp_path, region="both", fit="crop", region_margin=1.0)
    assert wider.image[0].count_nonzero() > first.image[0].count_nonzero()
    (plain,) = prepare([case], tmp_path, region="crop", fit="crop")
    assert torch.equal(plain.image, first.image[:1])
    write(case.label, np.roll(label_map(), 1, axis=0))
    (moved,) = prepare([case], tmp_path, region="both", fit="crop")
    assert not torch.equal(moved.image[0], first.image[0]) and moved.content_hash != first.content_hash


def test_all_cases_without_their_region_are_told_together(case, tmp_path):
    empty = write(tmp_path / "empty.nii.gz", np.zeros_like(label_map()))
    cases = [case, *(Case(name, name, case.images, empty, classes=("y",)) for name in "bc")]
    with pytest.raises(InputError) as caught:
        prepare(cases, tmp_path, region="crop")
    assert [(fault.where, fault.rule) for fault in caught.value.faults] == [
        ("b", "region-not-found"),
        ("c", "region-not-found"),
    ]


@pytest.mark.parametrize("labels, expected", [(["m", ""], ["cases.csv:3"]), (["", ""], ["data.region_from"])])
def test_a_manifest_without_label_maps_is_refused_before_anything_is_read(case, tmp_path, labels, expected):
    (tmp_path / "m").touch()
    rows = [f"{name},a.nii.gz,{label},{name}" for name, label in zip("xy", labels, strict=True)]
    path = tmp_path / "cases.csv"
    path.write_text("\n".join(["case,image,label,class", *rows]) + "\n")
    with pytest.raises(FaultError) as caught:
        read_class_study(ClassificationDataSection(manifest=path, region_from="label_map"))
    assert [fault.where.rpartition("/")[2] for fault in caught.value.faults] == expected
    assert {fault.rule for fault in caught.value.faults} == {"missing-label"}
