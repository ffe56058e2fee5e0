"""What a training works on is refused where it could only mislead."""

import pytest

from pipeline.config import SegmentationJob
from pipeline.data.cases import read_manifest
from pipeline.data.folds import split_cases
from pipeline.data.synthetic import write_phantom_study
from pipeline.errors import InputError
from pipeline.workflows.segmentation import SegmentationColumn
from pipeline.workflows.segmentation_material import load_material


def test_single_slices_are_not_cut_across(tmp_path):
    """Sagittal slices in the order R-A-S would be cut into lines of one voxel."""
    job = {
        "data": {
            "manifest": write_phantom_study(tmp_path / "study", num_cases=3, shape=(1, 20, 24)),
            "cache_dir": tmp_path / "cache",
            "num_folds": 3,
        },
        "network": {"dimensions": 2, "features": (4, 8)},
        "training": {"epochs": 1, "patch_size": (16, 16)},
    }
    with pytest.raises(InputError, match=r"phantom_01: .*set preprocessing.orientation to ASR") as caught:
        load_material(SegmentationJob.model_validate(job))
    assert len(caught.value.faults) == 3
    checked = SegmentationJob.model_validate(job)
    split = split_cases(read_manifest(checked.data).cases, checked.data)
    report = SegmentationColumn().check(checked, [split], lambda: None)
    assert {*report.errors} == {*caught.value.faults}, "told without training as well"
    turned = load_material(SegmentationJob.model_validate(job | {"preprocessing": {"orientation": "ASR"}}))
    assert turned.training[0].label.shape == (1, 20, 24, 1)
