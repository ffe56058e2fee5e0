"""What is learnt from a pair: the truth of every voxel of an image, or nothing."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.config import EnhancementJob
from pipeline.data.cases import Case
from pipeline.data.enhancement_images import prepare_enhancement_images
from pipeline.errors import InputError

SHAPE = (10, 9, 8)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


@pytest.fixture
def job(tmp_path):
    def make(method="supervised", spacing=None):
        return EnhancementJob.model_validate(
            {
                "task": "enhancement",
                "data": {"manifest": "a", "target": "b", "cache_dir": tmp_path / "cache"},
                "preprocessing": {"spacing": spacing},
                "network": {"features": (4, 8), "discriminator_levels": 1},
                "training": {"epochs": 1, "method": method, "patch_size": (8, 8, 8)},
            }
        )

    return make


def save(path: Path, array, affine=AFFINE) -> Case:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array, np.float32), affine), path)
    return Case(path.name.removesuffix(".nii.gz"), "patient", (path,))


def ramp(shape=SHAPE, affine=AFFINE):
    """Values that say where a voxel lies."""
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return places @ [100.0, 10.0, 1.0]


def shifted(affine, *steps):
    return affine @ nib.affines.from_matvec(np.eye(3), steps)


def test_truths_that_are_turned_or_show_less_than_their_image_are_all_named(tmp_path, job):
    turned = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2), (0, 0, 0)) @ AFFINE
    away = shifted(AFFINE, 100, 0, 0)
    truths = {
        "same": (SHAPE, AFFINE),
        "turned": (SHAPE, turned),
        "short": ((10, 9, 4), AFFINE),
        "away": (SHAPE, away),
        "larger": ((14, 9, 12), shifted(AFFINE, -2, 0, -1)),
        "half a voxel off": (SHAPE, shifted(AFFINE, 0.5, 0, 0)),
    }
    pairs = [
        tuple(
            save(tmp_path / f"{place}/{name}.nii.gz", ramp(*grid), grid[1])
            for place, grid in (("in", (SHAPE, AFFINE)), ("true", where))
        )
        for name, where in truths.items()
    ]
    with pytest.raises(InputError) as caught:
        prepare_enhancement_images(pairs, 1, job())
    told = {fault.where: fault for fault in caught.value.faults}
    assert told.keys() == {"turned", "short", "away"}
    assert {fault.rule for fault in told.values()} == {"truth-grid"}
    assert "turned" in told["turned"].message and "7 mm beyond" in told["short"].message
    # Where they only judge, such a truth is one that is not known.
    found = prepare_enhancement_images(pairs, 1, job("cyclegan"))
    assert [image.case.id for image in found if image.truth is None] == ["turned", "short", "away"]


def test_a_truth_lies_where_its_image_does_up_to_the_last_voxel(tmp_path, job):
    """The network's grid ends beyond the image's, whose last voxel counts there; the truth's does as well."""
    for shape, affine in ((SHAPE, AFFINE), ((7, 9, 8), AFFINE)):
        pair = [save(tmp_path / f"{name}/{shape[0]}.nii.gz", ramp(shape, affine)) for name in ("in", "true")]
        for spacing in (None, (2.0, 2.0, 3.0), (0.6, 1.0, 1.5)):
            (image,) = prepare_enhancement_images([(pair[0], pair[1])], 1, job(spacing=spacing))
            assert torch.allclose(image.truth, image.image, atol=1e-4)


def test_cases_that_are_one_image_are_prepared_side_by_side(tmp_path, job):
    pairs = [(save(tmp_path / f"in/{number}.nii.gz", ramp()), None) for number in range(12)]
    found = prepare_enhancement_images(pairs, 1, job("cyclegan"))
    assert all(torch.equal(image.image, found[0].image) for image in found)
