"""What a training works on is scaled alike, and refused where it could only mislead."""

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline.config import EnhancementJob, SegmentationJob
from pipeline.data.cases import read_manifest
from pipeline.data.folds import split_cases
from pipeline.data.synthetic import write_phantom_study
from pipeline.errors import ConfigError, InputError
from pipeline.labels import LabelContract
from pipeline.workflows.tasks.enhancement_material import load_enhancement_material
from pipeline.workflows.tasks.segmentation import SegmentationColumn
from pipeline.workflows.tasks.segmentation_material import check_structures, load_material
from transforms.corruption.resolution import ThickSlices


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


@pytest.mark.parametrize(
    ("orientation", "axes", "pairs", "refused"),
    [
        ("RAS", (0,), (), "left_kidney, right_kidney"),
        ("RAS", (1, 2), (), None),
        ("ASR", (2,), (), "left_kidney, right_kidney"),
        ("RAS", (0,), (("left_kidney", "right_kidney"),), None),
        ("RAS", (0,), (("left_kidney", "spleen"),), "right_kidney, left_kidney"),
    ],
)
def test_sides_that_do_not_change_places_are_not_mirrored(orientation, axes, pairs, refused):
    contract = LabelContract({"background": 0, "left_kidney": 1, "right_kidney": 2, "spleen": 3})
    job = SegmentationJob.model_validate(
        {
            "data": {"manifest": "study.csv", "left_right_pairs": pairs},
            "preprocessing": {"orientation": orientation},
            "augmentation": {"mirror_axes": axes},
            "training": {"epochs": 1},
        }
    )
    if refused is None:
        check_structures(job, contract)
        return
    with pytest.raises(ConfigError, match=f"changes places with {refused};") as caught:
        check_structures(job, contract)
    (fault,) = caught.value.faults
    assert (fault.where, fault.rule) == ("augmentation.mirror_axes", "mirrored-sides")


@pytest.mark.parametrize("normalisation", ["zscore", "magnitude"])
def test_targets_are_scaled_by_the_contrast_that_thick_slices_leave(tmp_path, normalisation):
    """Else a discriminator tells a target that was made thick from a source by its contrast."""
    thick = ThickSlices(3)
    for name in ("thin", "thick"):
        (tmp_path / name).mkdir()
    for number in range(3):
        random = np.random.default_rng(number)
        array = 500 + 900 * gaussian_filter(random.normal(size=(24, 24, 33)), 1).astype(np.float32)
        worse = thick(torch.from_numpy(array)[None], (1.0, 1.0, 1.0), 0)[0].numpy()
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"thin/p{number}.nii.gz")
        nib.save(nib.Nifti1Image(worse, thick.affine_after(np.eye(4))), tmp_path / f"thick/p{number}.nii.gz")
    job = {
        "task": "enhancement",
        "data": {
            "manifest": tmp_path / "thick",
            "target": tmp_path / "thin",
            "cache_dir": tmp_path / "cache",
            "fold": "none",
        },
        "preprocessing": {"spacing": [1, 1, 1], "normalisation": normalisation},
        "network": {"features": (4, 8), "discriminator_levels": 1, "num_blocks": 1},
        "training": {"epochs": 1, "patch_size": (16, 16, 16)},
        "inference": {"grid": "network"},
    }
    plain = load_enhancement_material(EnhancementJob.model_validate(job))
    slices = {"noise": "slices", "noise_channels": 1, "slice_distance": 3}
    scaled = load_enhancement_material(
        EnhancementJob.model_validate({**job, "network": {**job["network"], **slices}})
    )
    for source, target, unscaled in zip(scaled.sources, scaled.targets, plain.targets, strict=True):
        (own,), (seen,), (before,) = source.scales, target.scales, unscaled.scales
        off, was_off = (abs(scale.deviation / own.deviation - 1) for scale in (seen, before))
        assert off < was_off / 2 and was_off > 0.02
        restored = target.image[0] * seen.deviation + seen.mean
        expected = unscaled.image[0] * before.deviation + before.mean
        torch.testing.assert_close(restored, expected, rtol=0, atol=1e-3)
