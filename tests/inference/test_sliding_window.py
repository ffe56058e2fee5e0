"""A volume's scores do not depend on how it was cut into windows."""

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from pipeline.config import InferenceSection
from pipeline.inference.sliding_window import predict_scores


def pointwise(dims, channels=2, outputs=3):
    torch.manual_seed(0)
    return (nn.Conv3d if dims == 3 else nn.Conv2d)(channels, outputs, 1)


@pytest.mark.parametrize("shape", [(20, 17, 9), (5, 30, 1), (8, 8, 8)])
@pytest.mark.parametrize("blending", ["gaussian", "constant"])
@pytest.mark.parametrize("flips", [False, True])
def test_a_voxelwise_network_gives_the_whole_volumes_answer(shape, blending, flips):
    network, image = pointwise(3), torch.randn(2, *shape)
    section = InferenceSection(blending=blending, flips=flips, overlap=0.4)
    scores = predict_scores(network, image, (8, 8, 8), section)
    assert torch.allclose(scores.logits, network(image[None])[0], atol=1e-5)


def test_a_2d_job_predicts_every_slice_alone():
    network, image = pointwise(2), torch.randn(2, 20, 13, 4)
    scores = predict_scores(network, image, (8, 8), InferenceSection())
    expected = torch.stack([network(image[None, ..., k])[0] for k in range(4)], dim=-1)
    assert torch.allclose(scores.logits, expected, atol=1e-5)
    assert scores.num_windows % 4 == 0


def test_equals_monai_on_a_network_with_context():
    torch.manual_seed(1)
    network, image = nn.Conv3d(1, 2, 3, padding=1), torch.randn(1, 21, 18, 15)
    expected = SlidingWindowInferer((8, 8, 8), overlap=0.5, mode="gaussian")(image[None], network)[0]
    scores = predict_scores(network, image, (8, 8, 8), InferenceSection(overlap=0.5))
    assert torch.allclose(scores.logits, expected, atol=1e-5)


def test_flips_make_a_lopsided_network_symmetric():
    class Lopsided(nn.Module):
        def forward(self, windows):
            return torch.cat([windows.roll(1, dims=2), windows], dim=1)

    image = torch.randn(1, 8, 8, 8)
    section = InferenceSection(flips=True)
    scores = predict_scores(Lopsided(), image, (8, 8, 8), section)
    mirrored = predict_scores(Lopsided(), image.flip(1), (8, 8, 8), section)
    assert torch.allclose(mirrored.logits.flip(1), scores.logits, atol=1e-6)
    plain = InferenceSection(flips=False)
    assert not torch.allclose(
        predict_scores(Lopsided(), image.flip(1), (8, 8, 8), plain).logits.flip(1),
        predict_scores(Lopsided(), image, (8, 8, 8), plain).logits,
    )
