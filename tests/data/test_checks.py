"""A case and a study are judged as a whole: every rule has a name and nothing stops at the first fault."""

import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.config.segmentation import DataSection
from pipeline.data.cases import Case, Study, read_manifest
from pipeline.data.checks import check_study, read_checked_case
from pipeline.errors import InputError
from pipeline.inference.evaluation import evaluate_case
from pipeline.labels import LabelContract
from pipeline.volume import Volume

SHARED = Path(__file__).parents[2] / "../shared/data"
CONTRACT = LabelContract({"background": 0, "organ": 1, "lesion": 4})
AFFINE = np.diag([0.5, 0.5, 2, 1.0])
SHAPE = (6, 5, 4)


def image_array(seed: int = 0, dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, SHAPE).astype(dtype)


def label_array() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[1:3, 1:3, 1:3] = 1
    label[3, 3, 3] = 4
    return label


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine, dtype=array.dtype), path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path


def moved(mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine


def make_case(folder: Path, case_id: str = "a", patient: str | None = None, seed: int = 0, **changes) -> Case:
    """A sound case; `images` and `label` replace its files by (array, affine) pairs."""
    images = changes.get("images", [(image_array(seed), AFFINE)])
    label = changes.get("label", (label_array(), AFFINE))
    paths = [save(folder / f"{case_id}-{i}.nii.gz", *image) for i, image in enumerate(images)]
    label_path = None if label is None else save(folder / f"{case_id}-label.nii.gz", *label)
    return Case(case_id, patient or case_id, tuple(paths), label_path)


def study(*cases: Case, num_channels: int = 1) -> Study:
    return Study(cases, CONTRACT, tuple("xyz"[:num_channels]))


def rules(faults) -> list[str]:
    return [fault.rule for fault in faults]


def test_a_sound_case_passes(folder):
    checked = read_checked_case(make_case(folder), CONTRACT, 1)
    assert np.array_equal(checked.images[0].array, image_array())
    assert np.array_equal(checked.label.array, label_array())
    assert checked.label.array.dtype == np.uint8
    assert checked.warnings == ()


def test_a_case_without_label_map_can_be_read(folder):
    assert read_checked_case(make_case(folder, label=None), CONTRACT, 1).label is None


def test_channels_come_from_files_or_frames(folder):
    pair = [(image_array(1), AFFINE), (image_array(2), AFFINE)]
    frames = np.stack([image_array(1), image_array(2)], -1)
    apart = read_checked_case(make_case(folder, "a", images=pair), CONTRACT, 2)
    joined = read_checked_case(make_case(folder, "b", images=[(frames, AFFINE)]), CONTRACT, 2)
    for one, other in zip(apart.images, joined.images, strict=True):
        assert np.array_equal(one.array, other.array)


def unusual_label(dtype=np.uint8, value: float = 7) -> np.ndarray:
    label = label_array().astype(dtype)
    label[0, 0, :2] = value
    return label


REFUSED = {
    "shape": ("shape-mismatch", {"label": (label_array()[:-1], AFFINE)}),
    "affine": ("affine-mismatch", {"label": (label_array(), moved(0.2))}),
    "flipped": ("affine-mismatch", {"label": (label_array(), np.diag([-0.5, 0.5, 2, 1]))}),
    "value": ("label-values", {"label": (unusual_label(), AFFINE)}),
    "large value": ("label-values", {"label": (unusual_label(np.int32, 65535), AFFINE)}),
    "too large value": ("label-range", {"label": (unusual_label(np.int32, 65536), AFFINE)}),
    "fraction": ("label-not-whole", {"label": (unusual_label(np.float32, 0.5), AFFINE)}),
    "negative": ("label-range", {"label": (unusual_label(np.int16, -1), AFFINE)}),
    "NaN label": ("non-finite", {"label": (unusual_label(np.float32, np.nan), AFFINE)}),
    "NaN image": ("non-finite", {"images": [(np.full(SHAPE, np.nan, np.float32), AFFINE)]}),
    "frames": ("num-channels", {"images": [(np.stack([image_array()] * 2, -1), AFFINE)]}),
    "files": ("num-channels", {"images": [(image_array(1), AFFINE), (image_array(2), AFFINE)]}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_case_is_refused_by_its_rule(name, folder):
    rule, changes = REFUSED[name]
    case = make_case(folder, **changes)
    with pytest.raises(InputError) as caught:
        read_checked_case(case, CONTRACT, 1)
    assert rules(caught.value.faults) == [rule]
    assert rules(check_study(study(case)).errors) == [rule]


@pytest.mark.parametrize(
    "second, rule",
    [
        ((image_array(1)[:-1], AFFINE), "channel-shape-mismatch"),
        ((image_array(1), moved(3)), "channel-affine-mismatch"),
    ],
)
def test_channels_must_agree(second, rule, folder):
    case = make_case(folder, images=[(image_array(), AFFINE), second])
    with pytest.raises(InputError, match=rule):
        read_checked_case(case, CONTRACT, 2)


def test_rounding_of_a_header_is_no_mismatch(folder):
    """Neither before a training nor, when it has ended, where masks are compared with label maps."""
    case = read_checked_case(make_case(folder, label=(label_array(), moved(0.04))), CONTRACT, 1)
    mask = Volume(case.label.array, case.images[0].grid)
    assert {row.values["dice"] for row in evaluate_case("a", mask, case.label, CONTRACT.structures)} == {1.0}


def test_the_smaller_the_voxels_the_less_is_rounding(folder):
    """0.04 mm are two voxels of a specimen in a micro-CT."""
    affine = np.diag([0.02, 0.02, 0.02, 1])
    shifted = affine.copy()
    shifted[0, 3] = 0.04
    case = make_case(folder, images=[(image_array(), affine)], label=(label_array(), shifted))
    with pytest.raises(InputError, match=r"0\.04 mm from the image.*affine-mismatch"):
        read_checked_case(case, CONTRACT, 1)


def test_undeclared_values_are_told_with_their_voxels(folder):
    case = make_case(folder, label=(unusual_label(), AFFINE))
    with pytest.raises(InputError, match=r"undeclared values 7 \(2 voxels\).*4 lesion"):
        read_checked_case(case, CONTRACT, 1)


def test_all_faults_of_a_case_are_told(folder):
    broken = make_case(folder, images=[(image_array(), AFFINE)] * 2, label=(unusual_label()[:-1], AFFINE))
    broken.images[1].write_bytes(b"\x1f\x8b")
    missing = folder / "gone.nii.gz"
    case = Case("a", "a", (*broken.images, missing), broken.label)
    with pytest.raises(InputError) as caught:
        read_checked_case(case, CONTRACT, 3)
    assert sorted(rules(caught.value.faults)) == [
        "label-values",
        "missing-file",
        "shape-mismatch",
        "truncated",
    ]


FRAME = [(0, n - 1) for n in SHAPE]


@pytest.mark.parametrize(
    "rule, changes",
    [
        ("empty-label", {"label": (np.zeros(SHAPE, np.uint8), AFFINE)}),
        ("constant-image", {"images": [(np.full(SHAPE, 3, np.int16), AFFINE)]}),
        (
            "values-too-large",
            {"images": [(np.pad(np.ones((1, 1, 1)), FRAME, constant_values=-3e38), AFFINE)]},
        ),
    ],
)
def test_doubtful_cases_warn(rule, changes, folder):
    case = make_case(folder, **changes)
    assert rules(read_checked_case(case, CONTRACT, 1).warnings) == [rule]
    report = check_study(study(case))
    assert (rules(report.errors), rules(report.warnings)) == ([], [rule])


REGIONS = replace(CONTRACT, regions={"whole": (1, 4), "core": (4,)})


@pytest.mark.parametrize(
    "contract, labelled, told",
    [
        (CONTRACT, ("organ",), "lesion"),
        (CONTRACT, ("lesion",), "organ"),
        (CONTRACT, ("organ", "lesion"), None),
        (CONTRACT, None, None),
        (REGIONS, ("core",), "whole"),  # value 1 belongs to no labelled region
        (REGIONS, ("whole",), None),  # value 4 is a voxel of the whole
    ],
)
def test_a_label_map_that_holds_what_is_not_labelled_is_refused(contract, labelled, told, folder):
    case = replace(make_case(folder), labelled=labelled)
    report = check_study(Study((case,), contract, ("x",)))
    assert rules(report.errors) == (["labelled"] if told else [])
    if told:
        assert f"holds {told}, which" in report.errors[0].message


def test_an_ignored_value_is_no_undeclared_one(folder):
    label = label_array()
    label[0] = 9
    case = make_case(folder, label=(label, AFFINE))
    with pytest.raises(InputError, match="label-values"):
        read_checked_case(case, CONTRACT, 1)
    assert read_checked_case(case, replace(CONTRACT, ignore_value=9), 1).values == {0, 1, 4, 9}


def test_a_study_needs_label_maps(folder):
    report = check_study(study(make_case(folder, label=None)))
    assert rules(report.errors) == ["missing-label"]


def test_the_same_image_of_two_patients_leaks(folder):
    """Also when it was saved anew with another type and another affine."""
    again = (image_array(0, np.float32), moved(10))
    first, second = (
        make_case(folder, "a"),
        make_case(folder, "b", images=[again], label=(label_array(), moved(10))),
    )
    report = check_study(study(first, second))
    assert [(fault.where, fault.rule) for fault in report.errors] == [("b", "duplicate-image")]


def test_the_same_image_twice_of_one_patient_warns(folder):
    cases = [make_case(folder, name, patient="p") for name in "ab"]
    report = check_study(study(*cases))
    assert (rules(report.errors), rules(report.warnings)) == ([], ["duplicate-image"])


def test_one_bad_case_does_not_hide_the_others(folder):
    cases = [
        make_case(folder, name, seed=seed, **REFUSED[bad][1])
        for seed, (name, bad) in enumerate(
            {"a": "shape", "b": "value", "c": "NaN image", "d": "frames"}.items()
        )
    ]
    calls = []
    report = check_study(study(*cases, make_case(folder, "e", seed=9)), on_case=lambda: calls.append(1))
    assert rules(report.errors) == ["shape-mismatch", "label-values", "non-finite", "num-channels"]
    assert len(calls) == report.num_cases == 5


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("name", ["hippocampus", "openkbp"])
def test_real_studies_pass_within_seconds(name):
    real = read_manifest(DataSection(manifest=SHARED / name))
    start = time.process_time()
    report = check_study(real)
    assert time.process_time() - start < 20
    assert (report.errors, report.warnings) == ((), ())
