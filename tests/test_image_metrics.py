"""PSNR by its definition, SSIM as MONAI computes it."""

import math

import numpy as np
import pytest
import torch
from monai.metrics.regression import PSNRMetric, compute_ssim_and_cs

from pipeline.image_metrics import data_range, psnr, ssim


def noisy(shape, seed=0):
    generator = np.random.default_rng(seed)
    truth = generator.gamma(2.0, 200.0, shape).astype(np.float32)
    return (truth + generator.normal(0, 60, shape)).astype(np.float32), truth


# Of more planes than are worked on together, of less than a window, even, and of a single slice.
@pytest.mark.parametrize("shape", [(50, 12, 13), (13, 9, 30), (20, 21, 1), (4, 17, 12)])
def test_they_are_monais(shape):
    image, truth = noisy(shape)
    peak = data_range(truth)
    assert peak == truth.max() - truth.min()
    batch = [torch.from_numpy(array)[None, None].double() / peak for array in (image, truth)]
    window = [min(11, size - (size + 1) % 2) for size in shape]
    similarity, _ = compute_ssim_and_cs(*batch, 3, window, [1.5] * 3)
    assert ssim(image, truth, peak) == pytest.approx(float(similarity.mean()), abs=1e-5)
    assert psnr(image, truth, peak) == pytest.approx(float(PSNRMetric(1.0)(*batch)), abs=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_equal_images_are_as_similar_as_can_be_and_integers_do_not_overflow(dtype):
    truth = (np.arange(8 * 9 * 7).reshape(8, 9, 7) % 251).astype(dtype)
    assert psnr(truth, truth, 250) == math.inf
    assert ssim(truth, truth, 250) == pytest.approx(1)
    assert psnr(truth, truth[::-1], 250) == pytest.approx(psnr(truth[::-1].astype(float), truth, 250))
    assert ssim(truth, truth[::-1], 250) == pytest.approx(ssim(truth.astype(float), truth[::-1], 250))


def test_what_cannot_be_compared_is_refused():
    image, truth = noisy((5, 5, 5))
    for figure in psnr, ssim:
        with pytest.raises(ValueError, match="shape"):
            figure(image[1:], truth, 1.0)
        with pytest.raises(ValueError, match="positive range"):
            figure(image, truth, 0.0)
