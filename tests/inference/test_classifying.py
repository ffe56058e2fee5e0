"""Logits of whole images: the same in any batch, the mean over mirrored copies, each image for itself."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.calibration import Calibration
from pipeline.config import classification_job, job_from_mapping
from pipeline.data.cases import Case
from pipeline.inference.classifier import ClassPredictor
from pipeline.inference.classifying import compute_logits

CPU = torch.device("cpu")


def network(batch):
    ramp = torch.arange(batch[0].numel(), dtype=torch.float32).view(1, *batch.shape[1:])
    return torch.stack([(batch * ramp).flatten(1).sum(1), batch.flatten(1).max(1).values], dim=1)


def build_images(num=5):
    return list(torch.randn(num, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0)))


def test_batches_change_nothing():
    images = build_images()
    whole = compute_logits(network, images, 32, CPU)
    assert torch.equal(whole, compute_logits(network, images, 2, CPU))


@pytest.mark.parametrize("axes", [(0,), (0, 2), (0, 1, 2)])
def test_mirrored_copies_are_averaged(axes):
    images = build_images()
    chosen = [c for num in range(len(axes) + 1) for c in itertools.combinations(axes, num)]
    expected = [
        torch.stack([network(i.flip([a + 1 for a in c])[None] if c else i[None])[0] for c in chosen]).mean(0)
        for i in images
    ]
    torch.testing.assert_close(compute_logits(network, images, 3, CPU, axes), torch.stack(expected))


def test_out_of_memory_halves_the_batch_and_goes_on():
    sizes = []

    def greedy(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("no")
        return network(batch)

    images = build_images(7)
    assert torch.equal(compute_logits(greedy, images, 7, CPU), compute_logits(network, images, 7, CPU))
    assert sizes[:2] == [7, 3] and max(sizes[3:]) <= 2

    def hopeless(batch):
        raise torch.OutOfMemoryError("no")

    with pytest.raises(torch.OutOfMemoryError, match="not even one image"):
        compute_logits(hopeless, images, 4, CPU)


class Brightness(torch.nn.Module):
    """Two logits: the mean, and what is lacking to it."""

    def forward(self, batch):
        mean = batch.flatten(1).mean(1)
        return torch.stack([mean, -mean], dim=1)


def test_an_image_that_no_memory_holds_on_the_networks_grid_costs_only_itself(tmp_path):
    job = {
        "task": "classification",
        "data": {"manifest": "study.csv"},
        "preprocessing": {"size": [8, 8, 8], "spacing": [2.0, 2.0, 2.0]},
        "training": {"epochs": 1},
    }
    calibration = Calibration(False, 1.0, (0.5,), 0.0, 1.0, 0, None, None)
    predictor = ClassPredictor(
        classification_job(job_from_mapping(job)), ["a", "b"], ["image"], [Brightness()], calibration, CPU
    )
    cases = []
    for name, size, spacing in (("good", 16, 2), ("huge", 100, 99), ("fine", 16, 1)):
        path = tmp_path / f"{name}.nii"
        values = np.arange(size**3, dtype=np.int32).reshape(size, size, size)
        nib.save(nib.Nifti1Image(values, np.diag([spacing, spacing, spacing, 1])), path)
        cases.append(Case(name, name, (path,)))
    reports = predictor.classify(cases)
    assert [[fault.rule for fault in report.faults] for report in reports] == [[], ["out-of-memory"], []]
    assert [bool(report.predicted) for report in reports] == [True, False, True]
