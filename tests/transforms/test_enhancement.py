"""The scale of an enhancer's images: it can be undone, and noise hardly moves it."""

import numpy as np
import pytest
import torch

from transforms.corruption.magnitude import RicianNoise
from transforms.enhancement import prepare_image
from transforms.preprocessing import Preprocessing


def draw_head():
    """Bright, grey and dark ellipsoids in air."""
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, 32)] * 3, indexing="ij"))
    distance = np.sqrt((place**2).sum(axis=0))
    image = np.zeros((32, 32, 32), np.float32)
    for reach, value in (0.95, 300), (0.7, 200), (0.4, 30):
        image[distance < reach] = value
    return image


def scale(image, normalisation):
    settings = Preprocessing("RAS", normalisation=normalisation)
    return prepare_image(settings, [image], np.eye(4))


@pytest.mark.parametrize("normalisation", ["zscore", "magnitude"])
def test_the_scale_gives_the_image_back(normalisation):
    image = draw_head()
    scaled = scale(image, normalisation)
    (own,) = scaled.scales
    np.testing.assert_allclose(scaled.image[0] * own.deviation + own.mean, image, atol=1e-3)


def test_a_magnitude_keeps_no_signal_in_its_place():
    scaled = scale(draw_head(), "magnitude").image
    assert float(scaled.min()) == -2 and 1.8 < float(scaled.max()) < 3


def test_noise_moves_a_magnitude_less_than_z_scores():
    """What Rician noise adds to dark voxels is no part of the scale of a magnitude."""
    clean = draw_head()
    noisy = RicianNoise(15.0)(torch.from_numpy(clean[None]), (1.0, 1.0, 1.0), 0)[0].numpy()
    errors = {}
    for normalisation in ("zscore", "magnitude"):
        (own,) = scale(noisy, normalisation).scales
        # What a perfect enhancement of the noisy image comes to in its own unit.
        restored = scale(clean, normalisation).image[0].numpy() * own.deviation + own.mean
        errors[normalisation] = float(np.abs(restored - clean).mean())
    assert errors["magnitude"] < 0.3 * errors["zscore"], errors


def test_an_image_without_signal_stays_finite():
    assert scale(np.zeros((8, 8, 8), np.float32), "magnitude").image.isfinite().all()
