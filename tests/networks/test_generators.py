"""Generators: their grids and channels, where they begin, what they see, and what of it stays in a file."""

import copy

import pytest
import torch
from safetensors import torch as safetensors
from torch import nn

from pipeline.config.generators import GeneratorSection
from pipeline.networks import GENERATORS, AttentionUNet, build_generator
from pipeline.networks.blocks import Pointwise
from pipeline.networks.footprint import saved_bytes
from transforms.enhancement import stack_neighbours

CHANNELS, NOISE = 2, 1
SHAPES = {
    "2D": {"dimensions": 2, "features": (4, 6, 8)},
    "2.5D": {"dimensions": 2, "features": (4, 6), "neighbours": 2},
    "3D": {"dimensions": 3, "features": (4, 6, 8)},
    "anisotropic": {
        "dimensions": 3,
        "features": (2, 4, 6),
        "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 3)),
        "kernels": ((1, 3, 3), (3, 3, 3), (3, 5, 3)),
    },
    "one grid": {"dimensions": 2, "features": (4, 4), "strides": ((1, 1), (1, 1))},
}
KINDS = {
    "residual_generator": {"num_blocks": 2},
    "residual_generator without norm": {"num_blocks": 2, "norm": "none"},
    "attention_unet": {},
    "attention_unet without gates": {"attention_gates": False},
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors of these sizes cost more to share than to compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def section_of(kind, shape, **settings):
    (name,) = (name.split()[0] for name, other in KINDS.items() if other is kind)
    return GeneratorSection(name=name, **kind, **shape, **settings)


def generator(section, seed=0):
    torch.manual_seed(seed)
    return build_generator(section, CHANNELS, NOISE)


def trained(section, seed=0):
    """A generator whose last layer is not zero any more."""
    net = generator(section, seed)
    nn.init.normal_(net.body.head.weight)
    return net


def images(net, section, channels=CHANNELS, noise=NOISE, batch=2):
    """The smallest that a job allows, with another size along every axis."""
    size = [stride * voxels for voxels, stride in enumerate(net.total_stride, start=2)]
    stacked = channels * (2 * section.neighbours + 1) + noise
    return torch.randn(batch, stacked, *size, generator=torch.Generator().manual_seed(1))


def meant(image, section):
    """The channels of the slice itself."""
    return image[:, section.neighbours * CHANNELS :][:, :CHANNELS]


# Grids and channels


@pytest.mark.parametrize("residual", [True, False])
@every_kind
@every_shape
def test_an_image_of_the_same_grid_is_made(shape, kind, residual):
    section = section_of(kind, shape, residual=residual)
    net = trained(section)
    image = images(net, section)
    made = net(image)
    assert made.shape == (2, CHANNELS, *image.shape[2:])
    assert made.isfinite().all()
    torch.testing.assert_close(net(image[:1]), made[:1], rtol=1e-4, atol=1e-4)  # each by itself


@every_kind
def test_there_need_be_no_noise(kind):
    section = section_of(kind, SHAPES["2.5D"])
    net = build_generator(section, CHANNELS)
    assert net(images(net, section, noise=0)).shape[1] == CHANNELS


@every_kind
@pytest.mark.parametrize(
    ("size", "told"),
    [
        ((8, 9), r"multiple of the total stride \(4, 4\); the image has \(8, 9\)"),
        ((8, 8, 8), "2 spatial axes"),
        ((4, 4), "a single voxel on the coarsest grid"),
    ],
)
def test_what_it_cannot_see_is_refused(size, told, kind):
    net = generator(section_of(kind, SHAPES["2D"]))
    with pytest.raises(ValueError, match=told):
        net(torch.zeros(1, CHANNELS + NOISE, *size))


def test_every_name_of_the_config_has_its_network():
    assert set(GENERATORS) == set(GeneratorSection.model_fields["name"].annotation.__args__)


# Where it begins


@every_kind
@every_shape
def test_a_fresh_generator_corrects_nothing(shape, kind):
    section = section_of(kind, shape)
    net = build_generator(section, CHANNELS)
    image = images(net, section, noise=0)
    assert torch.equal(net(image), meant(image, section))


@every_kind
def test_a_fresh_random_generator_adds_a_little_of_its_noise(kind):
    section = section_of(kind, SHAPES["3D"])
    net = build_generator(section, CHANNELS, 2)
    image = images(net, section, noise=2)
    added = net(image) - meant(image, section)
    drawn = image[:, CHANNELS:].sum(dim=1, keepdim=True)
    torch.testing.assert_close(added, 0.1 * drawn.expand_as(added))


@every_kind
def test_every_noise_is_multiplied_by_a_map_of_every_channel(kind):
    """The body's maps stand as the correction, then the strengths of the first noise, then of the next."""
    section = section_of(kind, SHAPES["2.5D"])
    torch.manual_seed(0)
    net = build_generator(section, CHANNELS, 2)
    nn.init.normal_(net.body.head.weight)
    image = images(net, section, noise=2)
    correction, first, second = net.body(image).chunk(3, dim=1)
    made = meant(image, section) + correction + first * image[:, -2:-1] + second * image[:, -1:]
    torch.testing.assert_close(net(image), made)


def test_what_is_corrected_is_the_slice_in_the_middle_of_its_stack():
    section = section_of(KINDS["residual_generator"], SHAPES["2.5D"])
    volume = torch.randn(CHANNELS, 8, 6, 7)
    stack = stack_neighbours(volume, section.neighbours).movedim(-1, 0)
    assert torch.equal(build_generator(section, CHANNELS)(stack), volume.movedim(-1, 0))


@every_kind
def test_the_correction_is_what_the_body_says(kind):
    residual, plain = (section_of(kind, SHAPES["2.5D"], residual=residual) for residual in (True, False))
    corrects, makes = trained(residual), trained(plain, 1)
    makes.load_state_dict(corrects.state_dict())
    image = images(corrects, residual)
    torch.testing.assert_close(corrects(image), meant(image, residual) + makes(image))


@every_kind
@every_shape
def test_after_one_step_everything_learns(shape, kind):
    section = section_of(kind, shape)
    net = generator(section)
    image = images(net, section)
    target = torch.randn_like(meant(image, section))
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for step in range(2):
        optimizer.zero_grad()
        (net(image) - target).square().mean().backward()
        if step == 0:
            assert net.body.head.weight.grad.abs().min() > 0
        optimizer.step()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("norm", ["instance", "none"])
@pytest.mark.parametrize("shape", ["2D", "3D"])
def test_the_scale_at_the_start_depends_on_neither_norm_nor_number_of_blocks(shape, norm):
    scales = []
    for num_blocks in (1, 32):
        torch.manual_seed(0)
        section = GeneratorSection(**SHAPES[shape], norm=norm, num_blocks=num_blocks, residual=False)
        net = build_generator(section, CHANNELS, NOISE)
        scales.append(float(net(images(net, section, batch=8)).detach().std()))
    assert all(0.3 < scale < 4 for scale in scales), scales


def test_nothing_is_squashed():
    net = generator(section_of(KINDS["residual_generator"], SHAPES["2D"], residual=False))
    net.body.head.weight.data *= 100
    made = net(torch.randn(1, CHANNELS + NOISE, 16, 16))
    assert made.min() < -10 and made.max() > 10


# What it sees


@every_kind
def test_neighbours_and_noise_are_seen(kind):
    section = section_of(kind, SHAPES["2.5D"])
    net = trained(section)
    image = images(net, section)
    for channel in range(image.shape[1]):
        other = image.clone()
        other[:, channel] += torch.randn_like(other[:, channel])
        assert not torch.allclose(net(other), net(image)), channel


@pytest.mark.parametrize("norm", ["none", "instance"])
def test_without_norm_a_voxel_does_not_depend_on_what_is_far_away(norm):
    section = GeneratorSection(dimensions=2, features=(4, 6), num_blocks=1, norm=norm)
    net, image = trained(section), torch.randn(1, CHANNELS + NOISE, 64, 64)
    other = image.clone()
    other[..., :8, :8] += 3
    assert torch.equal(net(image)[..., 32:, 32:], net(other)[..., 32:, 32:]) == (norm == "none")


@pytest.mark.parametrize("norm", ["none", "instance"])
@pytest.mark.parametrize(
    ("size", "levels"),
    [
        ((96, 96), {"features": (4, 6, 8)}),
        ((96, 96), {"features": (4, 6), "strides": ((1, 1), (3, 2))}),
        ((48, 40, 44), {"dimensions": 3, "features": (2, 3)}),
    ],
    ids=["2D", "odd strides", "3D"],
)
def test_strides_leave_no_checkerboard(size, levels, norm):
    """Away from the borders an even image gives an even image, whatever the weights."""
    torch.manual_seed(0)
    shape = {"dimensions": 2, **levels}
    net = build_generator(GeneratorSection(**shape, num_blocks=1, norm=norm, residual=False), 1)
    with torch.no_grad():
        made = net(torch.full((1, 1, *size), 0.7))[0, 0]
    inner = made[tuple(slice(n // 3, -(n // 3)) for n in size)]
    assert made.std() > 1e-3  # the borders are seen
    assert inner.max() - inner.min() < 1e-4 * made.abs().max()


def test_an_attention_unet_is_the_one_of_segmentation():
    gated, plain = (
        section_of(KINDS[f"attention_unet{name}"], SHAPES["3D"]) for name in ("", " without gates")
    )
    net, without = (build_generator(section, CHANNELS) for section in (gated, plain))
    nn.init.normal_(net.body.head.weight)
    assert isinstance(net.body, AttentionUNet) and len(net.body.heads) == 1
    assert {"gates"} == {key.split(".")[1] for key in net.state_dict().keys() - without.state_dict().keys()}
    image = images(net, gated, noise=0)
    assert torch.equal(net(image), meant(image, gated) + net.body(image))
    assert len(net.body.forward_with_gates(image)[1]) == 2


def test_few_convolutions_run_on_the_full_grid():
    """They take most of a step: of the residual generator the stem, and one on the way up."""
    section = GeneratorSection(features=(16, 32, 64), num_blocks=4)
    net, grids = build_generator(section, 1), []
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(lambda _, __, output: grids.append(tuple(output.shape[2:])))
    net(torch.zeros(1, 1, 8, 8, 8))
    assert grids.count((8, 8, 8)) == 2
    assert isinstance(net.body.head, Pointwise)


# State


@every_kind
def test_the_seed_decides_the_weights(kind):
    section = section_of(kind, SHAPES["3D"])
    first, again, other = (generator(section, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@every_kind
@pytest.mark.parametrize("shape", ["2.5D", "3D"])
def test_weights_survive_their_file_and_a_copy(shape, kind):
    section = section_of(kind, SHAPES[shape])
    net, fresh = trained(section), trained(section, 1)
    image = images(net, section)
    fresh.load_state_dict(safetensors.load(safetensors.save(net.state_dict())))
    duplicate = copy.deepcopy(net)
    made = net(image)
    assert torch.equal(fresh(image), made) and torch.equal(duplicate(image), made)
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter.add_(1)
    assert torch.equal(net(image), made)


@pytest.mark.parametrize("kind", [KINDS["residual_generator"], KINDS["attention_unet"]], ids=str)
def test_dropout_acts_in_training_alone(kind):
    section = section_of(kind, SHAPES["2D"], dropout=0.5)
    net = trained(section)
    image = images(net, section)
    assert not torch.equal(net(image), net(image))
    net.eval()
    assert torch.equal(net(image), net(image))
    without = trained(section_of(kind, SHAPES["2D"]), 1)
    without.load_state_dict(net.state_dict())
    assert torch.equal(net(image), without(image))


@every_kind
def test_mixed_precision_does_not_round_the_image_itself(kind):
    section = section_of(kind, SHAPES["2D"])
    net = build_generator(section, CHANNELS)
    image = images(net, section, noise=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(image), meant(image, section))


@every_kind
def test_what_it_keeps_can_be_counted(kind):
    section = section_of(kind, SHAPES["3D"])
    small, large = (
        saved_bytes(generator(section), lambda net, image: net(image), (1, CHANNELS + NOISE, *size))
        for size in ((8, 8, 8), (8, 8, 16))
    )
    assert 0 < small < large


# Rician noise


def rician(strength):
    """A way back whose noise has one strength everywhere."""
    section = section_of(KINDS["residual_generator"], SHAPES["3D"], noise_channels=2, noise="rician")
    net = build_generator(section, CHANNELS, 2)
    nn.init.constant_(net.body.head.bias, strength)
    return net


def test_rician_noise_has_the_moments_of_a_magnitude():
    """Of length x with noise of strength s in both parts the mean square is x² + 2s²."""
    torch.manual_seed(0)
    image = torch.cat((torch.full((1, 1, 32, 32, 32), -2.0), torch.full((1, 1, 32, 32, 32), 1.0)), dim=1)
    with torch.no_grad():
        made = rician(0.8)(torch.cat((image, torch.randn(1, 2, 32, 32, 32)), dim=1)) + 2
    squares = made.square().mean(dim=(0, 2, 3, 4))
    torch.testing.assert_close(squares, torch.tensor([2 * 0.64, 9 + 2 * 0.64]), rtol=0.03, atol=0)
    assert made.min() >= 0


def test_rician_noise_of_no_strength_changes_nothing():
    net = rician(0.0)
    image = torch.rand(2, CHANNELS + 2, 8, 8, 8)
    torch.testing.assert_close(net(image), image[:, :CHANNELS])


def test_rician_noise_has_one_strength_in_a_window():
    net = rician(0.0)
    nn.init.normal_(net.body.head.weight)
    image = torch.full((1, CHANNELS + 2, 8, 8, 8), 100.0)  # so bright that only noise in phase is seen
    image[:, :CHANNELS] += torch.randn(1, CHANNELS, 8, 8, 8)
    image[:, CHANNELS], image[:, CHANNELS + 1] = 1.0, 0.0
    added = net(image) - image[:, :CHANNELS]
    assert (added - added.mean(dim=(2, 3, 4), keepdim=True)).abs().max() < 1e-3
    assert added.abs().min() > 1e-2


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_rician_noise_is_of_two_parts(channels):
    with pytest.raises(ValueError, match="set noise_channels to 2"):
        GeneratorSection(noise="rician", noise_channels=channels)


# Grain


def grain(strength, dimensions=2):
    """A way back whose noise has one strength everywhere."""
    section = section_of(
        KINDS["residual_generator"], SHAPES[f"{dimensions}D"], noise_channels=1, noise="grain"
    )
    net = build_generator(section, CHANNELS, 1)
    nn.init.constant_(net.body.head.bias, strength)
    return net


def noise_of(net, image, seed=0):
    """What a way back adds to images, of noise of its own in each."""
    white = torch.randn(len(image), 1, *image.shape[2:], generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return net(torch.cat((image, white), dim=1)) - image


@pytest.mark.parametrize("dimensions", [2, 3])
def test_grain_is_added_with_its_strength_up_to_the_edge(dimensions):
    net = grain(0.8, dimensions)
    nn.init.normal_(net.textures, generator=torch.Generator().manual_seed(0))
    image = torch.zeros(4000 if dimensions == 2 else 60, CHANNELS, *[16] * dimensions)
    added = noise_of(net, image)[:, 0]
    assert abs(float(added.mean())) < 0.02
    assert float(added.std()) == pytest.approx(0.8, rel=0.03)
    assert float(added[:, 0].std()) == pytest.approx(0.8, rel=0.05)  # along an edge


def test_grain_has_the_texture_of_its_kernel():
    """Two equal neighbours in a kernel make neighbours in the noise agree by one half, and no others."""
    net = grain(1.0)
    with torch.no_grad():
        net.textures[0, 0, 3, 4] = net.textures[0, 0, 3, 3]
    added = noise_of(net, torch.zeros(100, CHANNELS, 32, 32))[:, 0]
    agreement = [float((added[..., step:] * added[..., : 32 - step]).mean()) for step in (1, 2)]
    assert agreement == pytest.approx([0.5, 0.0], abs=0.03)
    across = float((added[:, 1:] * added[:, :-1]).mean())
    assert across == pytest.approx(0.0, abs=0.03)


def test_grain_of_no_strength_changes_nothing():
    image = torch.rand(2, CHANNELS, 16, 16)
    torch.testing.assert_close(noise_of(grain(0.0), image), torch.zeros_like(image))


def test_the_strength_of_grain_changes_slowly():
    """However fast the image does: of 17 voxels in a row one more or less counts little."""
    net = grain(0.5)
    nn.init.normal_(net.body.head.weight, std=10.0)
    image = torch.cat((torch.rand(1, CHANNELS, 32, 32), torch.ones(1, 1, 32, 32)), dim=1)
    added = (net(image) - image[:, :CHANNELS]).detach()
    plain = net.body(image[:, :CHANNELS]).detach()
    assert float(added.diff(dim=-1).abs().max()) < 0.25 * float(plain.diff(dim=-1).abs().max())
    mean = plain[..., 7:24, 7:24].mean(dim=(-2, -1))
    torch.testing.assert_close(added[..., 15, 15], mean, rtol=1e-3, atol=1e-4)


def test_grain_is_made_of_random_numbers():
    with pytest.raises(ValueError, match="set noise_channels to 1"):
        GeneratorSection(noise="grain", noise_channels=0)
