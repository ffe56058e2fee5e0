"""The way back that makes slices thicker: as thick slices are, prepared as a job prepares them."""

import math

import numpy as np
import pytest
import torch

from pipeline.config.enhancement import EnhancementJob
from pipeline.config.generators import GeneratorSection
from pipeline.networks import build_generator
from pipeline.networks.slices import thicken_slices
from transforms.corruption.resolution import ThickSlices
from transforms.enhancement import prepare_image
from transforms.preprocessing import Preprocessing

SETTINGS = {"noise": "slices", "noise_channels": 1, "features": (4, 8), "num_blocks": 1}


def thickening(distance=3.0, share=1.0, channels=1):
    section = GeneratorSection(slice_distance=distance, **SETTINGS)
    net = build_generator(section, channels, 1)
    torch.nn.init.constant_(net.log_thickness, math.log(share))
    return net


def thicken(net, image, draw=0.0):
    """What becomes of images whose random numbers are all one."""
    draws = torch.full((len(image), 1, *image.shape[2:]), draw)
    with torch.no_grad():
        return net(torch.cat((image, draws), dim=1))


def drawn(skipped):
    """The random number with which a patch begins so many voxels behind the first centre."""
    return torch.special.ndtri(torch.tensor((skipped + 0.5) / 1024))


@pytest.mark.parametrize("factor", [3, 5])
def test_it_makes_what_thick_slices_are_once_they_are_prepared(factor):
    """Prepared, it reaches from the first centre to the last. With odd factors its voxels are the image's."""
    image = torch.randn(1, 1, 5, 6, 4 * factor, generator=torch.Generator().manual_seed(0))
    thick = ThickSlices(factor)
    worse = thick(image[0], (1.0, 1.0, 1.0), 0)
    chain = Preprocessing("RAS", (1.0, 1.0, 1.0), "zscore")
    prepared = prepare_image(chain, [worse[0].numpy()], thick.affine_after(np.eye(4)))
    (scale,) = prepared.scales
    before = factor - factor // 2
    made = (thicken(thickening(factor), image, drawn(before))[0] - scale.mean) / scale.deviation
    made = made[..., factor // 2 : -(factor // 2)]
    assert prepared.image.shape == made.shape
    torch.testing.assert_close(made, prepared.image.float(), rtol=0, atol=1e-4)


def test_every_voxel_is_a_mean_wherever_slices_begin():
    net = thickening(2.7, share=1.3, channels=2)
    level = torch.full((1, 2, 4, 4, 13), 5.0)
    for draw in (-6.0, -1.0, 0.3, 6.0):
        torch.testing.assert_close(thicken(net, level, draw), level)


def test_each_image_begins_its_slices_elsewhere():
    ramp = torch.arange(12.0).square().expand(2, 1, 4, 4, 12)
    draws = torch.stack([drawn(300), drawn(301)]).view(2, 1, 1, 1, 1).expand(2, 1, 4, 4, 12)
    both = thickening()(torch.cat((ramp, draws), dim=1))
    assert not torch.allclose(both[0], both[1])
    torch.testing.assert_close(both[0, :, 0, 0], both[0, :, 3, 2])


@pytest.mark.parametrize("distance", [2.5, 3.0, 4.0])
def test_patches_begin_at_any_voxel_of_an_image_that_begins_at_a_centre(distance):
    """What a patch shows away from its ends is what the whole image shows there."""
    image = torch.randn(1, 1, 4, 4, 60, generator=torch.Generator().manual_seed(0))
    whole, margin = thicken_slices(image, distance), 8
    for skipped in (0, 1, 7, 20):
        patch = image[..., skipped : skipped + 40]
        made = thicken(thickening(distance), patch, drawn(skipped))
        inner = whole[..., skipped + margin : skipped + 40 - margin]
        torch.testing.assert_close(made[..., margin:-margin], inner, rtol=0, atol=1e-4)


def test_slices_as_thin_as_a_voxel_are_the_image_where_they_lie():
    image = torch.randn(1, 1, 4, 4, 12, generator=torch.Generator().manual_seed(0))
    made = thicken(thickening(3.0, share=1 / 3), image, drawn(2))
    torch.testing.assert_close(made[..., 1::3], image[..., 1::3])
    torch.testing.assert_close(made[..., 2], (2 * image[..., 1] + image[..., 4]) / 3)


def test_a_thickness_is_found_from_what_it_made():
    """By descent on the distance from images that slices with gaps made."""
    image = torch.randn(4, 1, 4, 4, 24, generator=torch.Generator().manual_seed(0))
    truth, net = thicken(thickening(4.0, share=0.6), image), thickening(4.0)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(80):
        optimizer.zero_grad()
        (net(torch.cat((image, torch.zeros_like(image)), dim=1)) - truth).square().mean().backward()
        optimizer.step()
    assert float(net.log_thickness.detach().exp()) == pytest.approx(0.6, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"noise": "slices", "slice_distance": 3}, "set noise_channels to 1"),
        ({"noise": "slices", "slice_distance": 3, "noise_channels": 1, "dimensions": 2}, "dimensions to 3"),
        ({"noise": "slices", "noise_channels": 1}, "set both, or neither"),
        ({"slice_distance": 3}, "set both, or neither"),
        ({"noise": "slices", "noise_channels": 1, "slice_distance": 1.0}, "greater than 1"),
    ],
)
def test_settings_that_do_not_fit(settings, told):
    with pytest.raises(ValueError, match=told):
        GeneratorSection(**settings)


@pytest.mark.parametrize(
    ("patch", "spacing", "told"),
    [((16, 16, 16), [1, 1, 1], "has to hold two slices"), ((16, 16, 24), None, "set preprocessing.spacing")],
)
def test_two_slices_fit_into_a_patch_on_one_grid(patch, spacing, told):
    settings = {
        "task": "enhancement",
        "data": {"manifest": "a", "target": "b"},
        "preprocessing": {"spacing": spacing},
        "network": {"slice_distance": 9, "discriminator_levels": 1, **SETTINGS},
        "training": {"epochs": 1, "patch_size": patch},
    }
    with pytest.raises(ValueError, match=told):
        EnhancementJob.model_validate(settings)
