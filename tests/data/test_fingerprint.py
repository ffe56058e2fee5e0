"""What is measured of a study, against volumes whose measures are known."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from pipeline.config import DataSection
from pipeline.data.cases import read_manifest
from pipeline.data.fingerprint import find_labels, survey_study
from pipeline.errors import InputError
from pipeline.labels import LabelContract

SPACING = (0.5, 1.0, 2.0)


@pytest.fixture
def volume():
    """A body of 20x30x12 voxels in air, and in it a bar of 6x10x4 (1), two slabs 3 thick (5)."""
    image = np.random.default_rng(0).normal(0, 5, (40, 50, 20))
    image[5:25, 10:40, 3:15] += 1000
    label = np.zeros(image.shape, dtype=np.uint8)
    label[8:14, 12:22, 5:9] = 1
    label[20:23, 25:29, 4:14] = label[20:23, 31:35, 4:14] = 5
    return image.astype(np.int16), label


@pytest.fixture
def write(tmp_path, volume):
    """Writes cases stored in the given orientations, with a CSV manifest; gives the study."""

    def write_study(codes=("RAS",), labels=None):
        rows = ["case,image,label"]
        for number, stored in enumerate(codes):
            for kind, array in zip(("image", "label"), volume, strict=True):
                nifti = nib.Nifti1Image(array, np.diag([*SPACING, 1]))
                turn = ornt_transform(io_orientation(nifti.affine), axcodes2ornt(stored))
                nib.save(nifti.as_reoriented(turn), tmp_path / f"{kind}{number}.nii.gz")
            rows.append(f"case{number},image{number}.nii.gz,label{number}.nii.gz")
        (tmp_path / "study.csv").write_text("\n".join(rows), encoding="utf-8")
        labels = labels or {"background": 0, "bar": 1, "slabs": 5}
        return read_manifest(DataSection(manifest=tmp_path / "study.csv", labels=labels))

    return write_study


def test_a_case_is_measured_as_it_was_made(write):
    fingerprint = survey_study(write())
    (case,) = fingerprint.cases
    assert (case.shape, case.spacing, case.content) == ((40, 50, 20), SPACING, (20, 30, 12))
    assert fingerprint.extent_mm == (10.0, 30.0, 24.0)
    assert case.structures["bar"].voxels == 240 and case.structures["bar"].ml == pytest.approx(0.24)
    assert case.structures["bar"].thickness_mm == (3.0, 10.0, 8.0)
    assert case.structures["slabs"].thickness_mm == (1.5, 4.0, 20.0)  # a run each, though they are two
    channel = case.channels[0]
    assert abs(channel.middle) < 20 and 900 < channel.high < 1100 and not fingerprint.is_ct


def test_stored_orientation_changes_nothing(write):
    cases = survey_study(write(("RAS", "LPS", "PIR", "SAL"))).cases
    assert [case.orientation for case in cases] == ["RAS", "LPS", "PIR", "SAL"]
    first = cases[0]
    for case in cases[1:]:
        assert (case.shape, case.content) == (first.shape, first.content)
        assert case.spacing == pytest.approx(first.spacing)
        for name, size in case.structures.items():
            assert size.thickness_mm == pytest.approx(first.structures[name].thickness_mm)


def test_a_region_is_measured_as_the_union_of_its_labels(write):
    study = write()
    regions = LabelContract(study.labels, {"all": (1, 5), "bar": (1,)})
    plain, united = survey_study(study), survey_study(replace(study, contract=regions))
    [labels], [case] = plain.cases, united.cases
    assert list(united.sizes) == ["all", "bar"] and case.structures["bar"] == labels.structures["bar"]
    assert case.structures["all"].voxels == sum(size.voxels for size in labels.structures.values())
    assert case.structures["all"].thickness_mm[2] == pytest.approx((240 + 240) * 2 / (60 + 24))
    assert united.structures == {"all": (1, 5), "bar": (1,)} and united.labels == study.labels


def test_labels_are_found_and_numbered(write):
    assert find_labels(write().cases) == {"background": 0, "label_1": 1, "label_5": 5}


def test_a_structure_that_never_occurs_is_told_so(write):
    fingerprint = survey_study(write(labels={"background": 0, "slabs": 5, "bar": 1, "none": 9}))
    assert {name: len(sizes) for name, sizes in fingerprint.sizes.items()} == {
        "bar": 1,
        "slabs": 1,
        "none": 0,
    }
    assert json.loads(fingerprint.to_json())["cases"][0]["structures"].keys() == {"bar", "slabs"}


def test_all_faults_are_told_together(write, tmp_path):
    study = write(("RAS", "LPS", "PIR"))
    for number in (0, 2):
        (tmp_path / f"label{number}.nii.gz").write_bytes(b"broken")
    for measure in (lambda: survey_study(study), lambda: find_labels(study.cases)):
        with pytest.raises(InputError) as error:
            measure()
        assert len(error.value.faults) == 2
