"""The discriminator: what one judgement sees, what it refuses, and what of spectral norm is its state."""

import copy
from itertools import pairwise

import pytest
import torch
from safetensors import torch as safetensors
from torch import nn

from pipeline.config.enhancement import EnhancementJob
from pipeline.config.generators import GeneratorSection
from pipeline.networks import build_discriminator

CHANNELS = 2
BOUNDS = {"instance norm": {}, "spectral norm": {"spectral_norm": True}}
both_bounds = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
both_dimensions = pytest.mark.parametrize("dimensions", [2, 3])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors of these sizes cost more to share than to compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def discriminator(dimensions=2, levels=2, width=4, seed=0, channels=CHANNELS, **settings):
    torch.manual_seed(seed)
    section = GeneratorSection(
        dimensions=dimensions, discriminator_levels=levels, discriminator_features=width, **settings
    )
    return build_discriminator(section, channels)


def images(*size, batch=2, seed=1):
    return torch.randn(batch, CHANNELS, *size, generator=torch.Generator().manual_seed(seed))


def convolutions(net):
    return [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d)]


# Patches and sizes


@pytest.mark.parametrize(("levels", "field"), [(1, 16), (2, 34), (3, 70), (4, 142), (5, 286)])
@both_dimensions
def test_the_receptive_field_by_hand(dimensions, levels, field):
    assert discriminator(dimensions, levels, width=1).receptive_field == (field,) * dimensions


@both_bounds
@pytest.mark.parametrize(("dimensions", "levels"), [(2, 1), (2, 2), (2, 3), (3, 1), (3, 2)])
def test_the_receptive_field_is_what_gradients_reach(dimensions, levels, bound):
    net = discriminator(dimensions, levels, width=1, **bound).double().eval()
    for index, layer in enumerate(net.layers):
        if isinstance(layer, nn.InstanceNorm2d | nn.InstanceNorm3d):  # it sees the whole image
            net.layers[index] = nn.Identity()
    for parameter in net.parameters():  # positive: no path is cut, none cancels another
        nn.init.constant_(parameter, 1.0)
    (field, *_), stride = net.receptive_field, 2**levels
    size = (field // stride + 4) * stride
    image = torch.ones(1, CHANNELS, *(size,) * dimensions, dtype=torch.float64, requires_grad=True)
    judgements = net(image)[0, 0]
    judgements[tuple(n // 2 for n in judgements.shape)].backward()
    reached = image.grad[0].abs().sum(0).nonzero()
    assert tuple((reached.amax(0) - reached.amin(0) + 1).tolist()) == net.receptive_field


@pytest.mark.parametrize(
    ("dimensions", "size", "judgements"),
    [
        (2, (256, 256), (30, 30)),
        (2, (24, 31), (1, 1)),
        (3, (32, 48, 32), (2, 4, 2)),
        (3, (24,) * 3, (1,) * 3),
    ],
)
def test_judgements_by_hand(dimensions, size, judgements):
    assert discriminator(dimensions, levels=3, width=1)(images(*size)).shape == (2, 1, *judgements)


@both_bounds
@both_dimensions
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_smallest_image_is_judged_and_no_smaller_one(dimensions, levels, bound):
    net = discriminator(dimensions, levels, width=2, **bound)
    smallest = 3 * 2**levels
    judgements = net(images(*(smallest,) * dimensions))
    assert judgements.shape == (2, 1, *(1,) * dimensions)
    assert judgements.isfinite().all() and judgements.abs().min() > 0
    size = (smallest,) * (dimensions - 1) + (smallest - 1,)
    for refuse in (lambda: net.check_size(size), lambda: net(images(*size))):
        with pytest.raises(ValueError, match=f"{levels} strided levels needs {smallest} .* take fewer"):
            refuse()


@both_dimensions
def test_an_image_of_another_rank_is_refused(dimensions):
    with pytest.raises(ValueError, match=f"{dimensions} axes"):
        discriminator(dimensions).check_size((64,) * (5 - dimensions))


@pytest.mark.parametrize("method", ["cyclegan", "supervised"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_job_knows_which_patches_it_will_refuse(levels, method):
    network = GeneratorSection(features=(4, 4), discriminator_levels=levels)
    for voxels in range(4, 32, 2):
        try:
            discriminator(3, levels, width=1).check_size((32, 32, voxels))
        except ValueError:
            refused = method == "cyclegan"
        else:
            refused = False
        training = {"epochs": 1, "method": method, "patch_size": (32, 32, voxels)}
        job = {
            "task": "enhancement",
            "data": {"manifest": "noisy", "target": "clean"},
            "network": network,
            "training": training,
        }
        if refused:
            with pytest.raises(ValueError, match=f"training.patch_size: each axis needs {3 * 2**levels}"):
                EnhancementJob.model_validate(job)
        else:
            EnhancementJob.model_validate(job)


# Layers


def test_widths_double_up_to_eight_times():
    shapes = [tuple(layer.weight.shape[:2]) for layer in convolutions(discriminator(levels=5, width=2))]
    assert shapes == list(zip([2, 4, 8, 16, 16, 16, 1], [CHANNELS, 2, 4, 8, 16, 16, 16], strict=True))


@both_dimensions
def test_all_convolutions_but_the_first_and_the_last_are_normalised(dimensions):
    net = discriminator(dimensions, levels=3)
    follows = [
        isinstance(after, nn.InstanceNorm2d | nn.InstanceNorm3d)
        for layer, after in pairwise([*net.layers, None])
        if layer in convolutions(net)
    ]
    assert follows == [False, True, True, True, False]
    assert {layer.negative_slope for layer in net.layers if isinstance(layer, nn.LeakyReLU)} == {0.2}


@both_dimensions
def test_spectral_norm_stands_instead_and_bounds_every_layer(dimensions):
    net = discriminator(dimensions, levels=2, spectral_norm=True)
    assert not any(isinstance(layer, nn.InstanceNorm2d | nn.InstanceNorm3d) for layer in net.modules())
    for layer in convolutions(net):
        layer.parametrizations.weight.original.data *= 50
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        torch.testing.assert_close(largest, torch.tensor(1.0), rtol=0.05, atol=0)


@both_bounds
@both_dimensions
def test_gradients_reach_every_parameter_and_the_image(dimensions, bound):
    net, image = discriminator(dimensions, **bound), images(*(16,) * dimensions).requires_grad_()
    (net(image) - 1).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert (image.grad != 0).float().mean() > 0.9


@both_dimensions
def test_fresh_judgements_have_a_scale_near_one(dimensions):
    judgements = discriminator(dimensions, levels=2, width=16)(images(*(32,) * dimensions, batch=8))
    assert 0.3 < judgements.std() < 3  # and so nothing squashes them: they pass 1
    assert judgements.abs().max() > 1


@both_bounds
def test_an_image_is_judged_by_itself(bound):
    net, image = discriminator(**bound).eval(), images(20, 24)
    torch.testing.assert_close(net(image)[:1], net(image[:1]))


# State


@both_bounds
def test_the_seed_decides_the_weights(bound):
    first, again, other = (discriminator(seed=seed, **bound).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@both_bounds
@both_dimensions
def test_training_goes_on_from_its_file_and_a_copy_with_the_same_bits(dimensions, bound):
    net, fresh = (discriminator(dimensions, seed=seed, **bound) for seed in (0, 1))
    image = images(*(16,) * dimensions)

    def step(network):
        loss = (network(image) - 1).square().mean()
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.sub_(gradient, alpha=0.01)
        return loss.detach()

    for _ in range(3):
        step(net)
    fresh.load_state_dict(safetensors.load(safetensors.save(net.state_dict())))
    duplicate = copy.deepcopy(net)
    for _ in range(3):
        loss = step(net)
        assert torch.equal(step(fresh), loss) and torch.equal(step(duplicate), loss)


def test_spectral_norm_looks_on_in_training_alone():
    net, image = discriminator(spectral_norm=True), images(16, 16)
    before = copy.deepcopy(net.state_dict())

    def changed():
        return {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}

    net.eval()(image)
    assert changed() == set()
    net.train()(image)
    assert changed() and all(key.endswith(("._u", "._v")) for key in changed())


def test_what_lies_beyond_the_judged_range_counts_as_its_end():
    net, image = discriminator(judged_range=(-1, 1)), 3 * images(24, 24)
    torch.testing.assert_close(net(image), net(image.clamp(-1, 1)))
    torch.testing.assert_close(net(image), discriminator()(image.clamp(-1, 1)))
    assert not torch.allclose(discriminator()(image), net(image))


def test_a_judged_range_has_its_lowest_first():
    with pytest.raises(ValueError, match="judged_range"):
        GeneratorSection(judged_range=(1, -1))
