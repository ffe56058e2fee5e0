"""The Attention U-Net: its shapes, its gates, and what one logit may depend on."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.segmentation import NetworkSection
from pipeline.networks import build_network
from pipeline.networks.attention_unet import AttentionUNet
from pipeline.networks.blocks import AttentionGate, Pointwise, upsample_linear

IN, OUT = 2, 3
SHAPES = {
    "3D": {"dimensions": 3, "features": (4, 6, 8)},
    "2D": {"dimensions": 2, "features": (4, 6, 8, 10)},
    "two levels": {"dimensions": 3, "features": (4, 6)},
    "anisotropic": {
        "dimensions": 3,
        "features": (2, 4, 6),
        "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        "kernels": ((1, 3, 3), (3, 3, 3), (3, 5, 3)),
    },
    "odd strides": {"dimensions": 2, "features": (3, 5, 7), "strides": ((1, 1), (3, 2), (1, 1))},
    "kernels of one": {"dimensions": 2, "features": (3, 4), "kernels": ((1, 1), (1, 1))},
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
both_blocks = pytest.mark.parametrize("blocks", ["plain", "residual"])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors of these sizes cost more to share than to compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(seed: int = 0, **settings) -> AttentionUNet:
    torch.manual_seed(seed)
    built = build_network(NetworkSection(**settings), IN, OUT)
    assert isinstance(built, AttentionUNet)
    return built


def small_image(net: AttentionUNet) -> Tensor:
    """The smallest image with another size along every axis."""
    size = [stride * voxels for voxels, stride in enumerate(net.total_stride, start=2)]
    return torch.randn(2, IN, *size, generator=torch.Generator().manual_seed(1))


def strides_of(section: NetworkSection) -> list[tuple[int, ...]]:
    dimensions, levels = section.dimensions, len(section.features)
    return list(section.strides or [(1,) * dimensions, *[(2,) * dimensions] * (levels - 1)])


def skip_grids(section: NetworkSection, image: Tensor) -> list[tuple[int, ...]]:
    """The grid of every level but the coarsest."""
    grids, grid = [], tuple(image.shape[2:])
    for stride in strides_of(section)[:-1]:
        grid = tuple(n // s for n, s in zip(grid, stride, strict=True))
        grids.append(grid)
    return grids


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def set_gates(net: AttentionUNet, score: float) -> None:
    """Makes every gate answer sigmoid(score) everywhere."""
    for gate in net.gates:
        nn.init.zeros_(gate.score.weight)
        nn.init.constant_(gate.score.bias, score)


def scale_skip_weights(net: AttentionUNet, factor: float) -> None:
    """Scales whatever the first convolution (and the shortcut) of each decoder block make of the skip."""
    for block in net.decoder:
        readers = [block[0]] if isinstance(block, nn.Sequential) else [block.body[0], block.shortcut[0]]
        for reader in readers:
            reader.weight.data[:, : reader.in_channels // 2] *= factor


# Shapes and sizes


@both_blocks
@every_shape
def test_logits_maps_and_supervision_have_the_grids_of_their_levels(shape, blocks):
    net = network(**shape, blocks=blocks)
    image = small_image(net)
    grids = skip_grids(NetworkSection(**shape), image)

    assert net(image).shape == (2, OUT, *image.shape[2:])
    assert [tuple(logits.shape) for logits in net.forward_deep(image)] == [(2, OUT, *g) for g in grids]
    assert [tuple(a.shape) for a in net.forward_with_gates(image)[1]] == [(2, 1, *g) for g in grids]


@both_blocks
@every_shape
def test_the_three_ways_forward_give_the_same_logits(shape, blocks):
    net = network(**shape, blocks=blocks)
    image = small_image(net)
    logits = net(image)
    assert torch.equal(logits, net.forward_with_gates(image)[0])
    assert torch.equal(logits, net.forward_deep(image)[0])


def test_without_supervision_or_gates_there_is_one_output_and_no_map():
    net = network(**SHAPES["3D"], attention_gates=False, deep_supervision=False)
    image = small_image(net)
    assert len(net.forward_deep(image)) == 1
    assert net.forward_with_gates(image)[1] == []


def test_the_section_decides_the_defaults():
    net = network()
    assert net.total_stride == (8, 8, 8)
    assert [block[0].weight.shape[:2] for block in net.encoder] == [(16, IN), (32, 16), (64, 32), (128, 64)]
    assert {block[0].kernel_size for block in net.encoder} == {(3, 3, 3)}


def test_a_size_that_cannot_be_halved_is_refused_with_the_multiple():
    net = network(**SHAPES["anisotropic"])
    with pytest.raises(
        ValueError, match=r"multiple of the total stride \(2, 4, 4\); the image has \(4, 8, 9\)"
    ):
        net(torch.zeros(1, IN, 4, 8, 9))


@pytest.mark.parametrize("size", [(8, 8), (1, 8, 8, 8, 8)])
def test_an_image_of_another_rank_is_refused(size):
    with pytest.raises(ValueError, match="3 spatial axes"):
        network(**SHAPES["3D"])(torch.zeros(1, IN, *size))


def test_a_single_coarsest_voxel_is_refused_since_its_norm_is_zero():
    net = network(**SHAPES["3D"])
    with pytest.raises(ValueError, match="a single voxel on the coarsest grid"):
        net(torch.zeros(1, IN, 4, 4, 4))
    assert net(torch.zeros(1, IN, 4, 4, 8)).isfinite().all()


# Weights


@both_blocks
@every_shape
def test_parameters_are_as_many_as_the_layers_say(shape, blocks):
    section = NetworkSection(**shape, blocks=blocks)
    features, strides = section.features, strides_of(section)
    kernels = section.kernels or ((3,) * section.dimensions,) * len(features)

    def block(inward: int, outward: int, kernel: tuple[int, ...], stride: tuple[int, ...]) -> int:
        convolutions = math.prod(kernel) * (inward * outward + outward * outward)
        changes = inward != outward or math.prod(stride) > 1
        shortcut = math.prod(stride) * inward * outward + 2 * outward
        return convolutions + 4 * outward + (shortcut if blocks == "residual" and changes else 0)

    expected = sum(map(block, (IN, *features), features, kernels, strides))
    for fine, coarse, kernel, stride in zip(features, features[1:], kernels, strides[1:], strict=False):
        hidden = fine // 2
        expected += math.prod(stride) * coarse * fine  # up
        expected += block(2 * fine, fine, kernel, (1,))
        expected += hidden * (math.prod(stride) * fine + coarse + 1) + hidden + 1  # gate
        expected += (fine + 1) * OUT  # head
    assert num_parameters(network(**shape, blocks=blocks)) == expected


def test_parameters_by_hand():
    settings = {"dimensions": 2, "features": (2, 4), "attention_gates": False}
    encoder = (9 * 2 * 2 + 9 * 2 * 2 + 8) + (9 * 2 * 4 + 9 * 4 * 4 + 16)
    decoder = 4 * 4 * 2 + (9 * 4 * 2 + 9 * 2 * 2 + 8) + (2 * 3 + 3)
    assert num_parameters(network(**settings)) == encoder + decoder == 469


@both_blocks
@every_shape
def test_gates_add_their_own_parameters_and_nothing_else(shape, blocks):
    gated, plain = (network(**shape, blocks=blocks, attention_gates=gates) for gates in (True, False))
    shared = {name: w.shape for name, w in gated.state_dict().items() if not name.startswith("gates.")}
    assert shared == {name: w.shape for name, w in plain.state_dict().items()}
    assert num_parameters(gated) - num_parameters(plain) == num_parameters(gated.gates) > 0


@both_blocks
@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("name", ["3D", "2D"])
def test_gradients_reach_every_parameter(name, deep_supervision, blocks):
    net = network(**SHAPES[name], blocks=blocks, deep_supervision=deep_supervision)
    sum(logits.square().sum() for logits in net.forward_deep(small_image(net))).backward()
    silent = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_the_seed_decides_the_weights():
    first, again, other = (network(seed, **SHAPES["3D"]).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["encoder.0.0.weight"], other["encoder.0.0.weight"])


@both_blocks
def test_weights_carry_the_whole_network(blocks):
    net, fresh = (network(seed, **SHAPES["anisotropic"], blocks=blocks) for seed in (0, 1))
    image = small_image(net)
    assert not torch.equal(net(image), fresh(image))
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(net(image), fresh(image))


@both_blocks
def test_fresh_features_keep_their_scale(blocks):
    """Kaiming: neither does the signal die on the way up, nor does one path drown the other."""
    net = network(features=(16, 32, 64), blocks=blocks)
    scales = []
    for up in net.ups:
        up.register_forward_hook(lambda module, inputs, output: scales.append(float(output.detach().std())))
    net(torch.randn(1, IN, 16, 16, 16))
    assert all(0.6 < scale < 2.0 for scale in scales), scales


# Attention


@pytest.mark.parametrize(("channels", "stride"), [(6, (1, 2, 2)), (5, (2, 2)), (1, (3, 1))])
def test_a_gate_computes_the_equations_of_the_paper(channels, stride):
    torch.manual_seed(0)
    gate = AttentionGate(channels, 7, stride)
    for parameter in gate.parameters():
        nn.init.normal_(parameter)
    coarse = (3, 2, 4)[: len(stride)]
    skip = torch.randn(2, channels, *(n * s for n, s in zip(coarse, stride, strict=True)))
    gating = torch.randn(2, 7, *coarse)

    convolve = {2: functional.conv2d, 3: functional.conv3d}[len(stride)]
    of_gating = torch.einsum("hg,bg...->bh...", gate.from_gating.weight, gating)
    bias = gate.from_gating.bias.view(1, -1, *[1] * len(stride))
    hidden = functional.leaky_relu(
        convolve(skip, gate.from_skip.weight, stride=stride) + of_gating + bias, 0.01
    )
    score = torch.einsum("oh,bh...->bo...", gate.score.weight, hidden) + gate.score.bias
    mode = {2: "bilinear", 3: "trilinear"}[len(stride)]
    expected = functional.interpolate(score.sigmoid(), skip.shape[2:], mode=mode)
    torch.testing.assert_close(gate(skip, gating), expected)


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 3), (4, 1, 2), (2, 5), (1, 1)])
@pytest.mark.parametrize("size", [(3, 4, 2), (1, 1, 1)])
def test_linear_resampling_agrees_with_torch_in_value_and_gradient(factors, size):
    mode = {2: "bilinear", 3: "trilinear"}[len(factors)]
    ours = torch.randn(2, 2, *size[: len(factors)], requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    got, expected = (
        upsample_linear(ours, factors),
        functional.interpolate(theirs, scale_factor=factors, mode=mode),
    )
    torch.testing.assert_close(got, expected)
    weights = torch.randn_like(got)
    (got * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@both_blocks
@every_shape
def test_attention_lies_between_0_and_1_and_differs_from_voxel_to_voxel(shape, blocks):
    net = network(**shape, blocks=blocks)
    for attention in net.forward_with_gates(50 * small_image(net))[1]:
        assert attention.min() >= 0
        assert attention.max() <= 1
        assert attention.std() > 1e-4


@both_blocks
@every_shape
def test_closed_gates_leave_nothing_of_the_skips(shape, blocks):
    net = network(**shape, blocks=blocks)
    image, open_before = small_image(net), net(small_image(net))
    set_gates(net, -1e4)
    closed = net(image)
    scale_skip_weights(net, 7.0)
    assert torch.equal(net(image), closed)
    assert not torch.allclose(closed, open_before)


@both_blocks
@pytest.mark.parametrize("score", [0.7, 1e4])
def test_even_gates_multiply_the_skips_of_the_plain_network(blocks, score):
    gated = network(**SHAPES["anisotropic"], blocks=blocks)
    plain = network(1, **SHAPES["anisotropic"], blocks=blocks, attention_gates=False)
    plain.load_state_dict({k: w for k, w in gated.state_dict().items() if not k.startswith("gates.")})
    set_gates(gated, score)
    scale_skip_weights(plain, 1 / (1 + math.exp(-score)))
    torch.testing.assert_close(gated(small_image(gated)), plain(small_image(gated)), rtol=1e-4, atol=1e-4)


# What a logit depends on


@both_blocks
@pytest.mark.parametrize("attention_gates", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        {"features": (2, 3, 2)},
        {"features": (2, 2, 2), "strides": ((1, 1), (1, 2), (3, 2)), "kernels": ((1, 3), (3, 3), (5, 1))},
        {"features": (2, 2), "strides": ((1, 1), (4, 3)), "kernels": ((1, 1), (1, 3))},
        {"features": (2, 2), "strides": ((1, 1), (3, 4)), "kernels": ((3, 3), (1, 1))},
    ],
    ids=["usual", "anisotropic", "fine kernel of one", "coarse kernel of one"],
)
def test_the_receptive_field_is_what_gradients_reach(shape, attention_gates, blocks):
    net = network(dimensions=2, **shape, blocks=blocks, attention_gates=attention_gates).double()
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.InstanceNorm2d):  # it sees the whole image
                setattr(parent, name, nn.Identity())
    for parameter in net.parameters():  # positive averages: no path is cut, none cancels another
        nn.init.constant_(parameter, 1 / max(1, parameter[0].numel()))
    size = [
        total * math.ceil(2.5 * f / total)
        for f, total in zip(net.receptive_field, net.total_stride, strict=True)
    ]
    image = torch.ones(1, IN, *size, dtype=torch.float64, requires_grad=True)
    logits = net(image)

    widest = [0, 0]
    for step in range(max(net.total_stride)):
        row, column = (n // 2 + step % s for n, s in zip(size, net.total_stride, strict=True))
        (gradient,) = torch.autograd.grad(logits[0, 0, row, column], image, retain_graph=True)
        reached = gradient[0].abs().sum(0).nonzero()
        extent = (reached.amax(0) - reached.amin(0) + 1).tolist()
        widest = [max(pair) for pair in zip(widest, extent, strict=True)]
    assert tuple(widest) == net.receptive_field


def test_the_receptive_field_by_hand():
    net = network(dimensions=2, features=(2, 2), attention_gates=False)
    # Backwards from voxel 0: decoder [-2, 2]; up [-1, 1]; coarse block [-2, 2], then twice that ± 1, [-5, 5];
    # finest block [-7, 7].
    assert net.receptive_field == (15, 15)


@both_blocks
def test_a_sample_does_not_depend_on_the_others_of_its_batch(blocks):
    net = network(**SHAPES["anisotropic"], blocks=blocks)
    image = small_image(net)
    torch.testing.assert_close(net(image)[:1], net(image[:1]))


def test_logits_are_not_activated():
    net = network(**SHAPES["3D"])
    net.heads[0].weight.data *= 100
    logits = net(small_image(net))
    assert logits.min() < -10
    assert logits.max() > 10


def test_dropout_acts_in_every_block_and_in_training_alone():
    net = network(**SHAPES["3D"], dropout=0.5)
    for block in [*net.encoder, *net.decoder]:
        assert [layer.p for layer in block if isinstance(layer, nn.Dropout3d)] == [0.5]
    image = small_image(net)
    assert not torch.equal(net(image), net(image))
    net.eval()
    assert torch.equal(net(image), net(image))
    without = network(1, **SHAPES["3D"])
    without.load_state_dict(net.state_dict())
    assert torch.equal(net(image), without(image))


# Companions


def test_pointwise_is_a_convolution_of_kernel_one():
    pointwise, image = Pointwise(4, 3), torch.randn(2, 4, 5, 6, 7)
    nn.init.normal_(pointwise.weight)
    nn.init.normal_(pointwise.bias)
    expected = functional.conv3d(image, pointwise.weight[:, :, None, None, None], pointwise.bias)
    torch.testing.assert_close(pointwise(image), expected)


def test_autocast_computes_in_half_precision():
    net = network(**SHAPES["3D"])
    image = small_image(net)
    with torch.autocast("cpu", torch.bfloat16):
        logits, attention = net.forward_with_gates(image)
    assert logits.dtype == torch.bfloat16
    assert all(a.min() >= 0 and a.max() <= 1 for a in attention)
    torch.testing.assert_close(logits.float(), net(image), rtol=0.2, atol=0.2)


def test_the_network_is_one_graph_for_export():
    net = network(**SHAPES["anisotropic"], blocks="residual").eval()
    image = small_image(net)
    batch = torch.export.Dim("batch", min=1, max=8)
    exported = torch.export.export(net, (image,), dynamic_shapes={"image": {0: batch}}).module()
    three = image[[0, 1, 0]]
    torch.testing.assert_close(exported(three), net(three))


# From input to output


@both_blocks
@every_shape
@pytest.mark.parametrize("attention_gates", [True, False])
def test_stages_hold_every_parameter_once_in_the_order_in_which_it_answers(shape, blocks, attention_gates):
    net = network(**shape, blocks=blocks, attention_gates=attention_gates)
    held = [parameter for stage in net.stages for parameter in stage.parameters()]
    assert len(held) == len({id(p) for p in held}) == len(list(net.parameters()))
    assert len(net.stages) == 2 * len(shape["features"])
    assert net.stages[: len(net.encoder)] == list(net.encoder) and net.stages[-1] is net.heads

    answered = []
    for number, stage in enumerate(net.stages):
        stage_modules = stage if isinstance(stage, nn.ModuleList) else [stage]
        for module in stage_modules:
            module.register_forward_hook(lambda *_, number=number: answered.append(number))
    net(small_image(net))
    assert answered == sorted(answered) and set(answered) == set(range(len(net.stages)))
