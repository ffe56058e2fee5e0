"""Our classifier: its sizes, its encoder, its pooling, and that nothing in it is idle."""

import math

import pytest
import torch
from torch import nn

from pipeline.config.classification import ClassifierSection
from pipeline.config.segmentation import NetworkSection
from pipeline.networks import CNNClassifier, build_classifier, build_network
from pipeline.networks.pooling import AttentionPooling, AveragePooling, SqueezeExcitation
from pipeline.networks.pretrained import Source, load_pretrained

IN, OUT = 2, 3
SHAPES = {
    "3D": {"dimensions": 3, "features": (4, 6, 8)},
    "2D": {"dimensions": 2, "features": (4, 6, 8)},
    "anisotropic": {
        "dimensions": 3,
        "features": (2, 4, 6),
        "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        "kernels": ((1, 3, 3), (3, 3, 3), (3, 5, 3)),
    },
    "strided entrance": {"dimensions": 2, "features": (3, 5), "strides": ((2, 3), (2, 2))},
    "odd strides": {"dimensions": 2, "features": (3, 5, 7), "strides": ((1, 1), (3, 2), (1, 5))},
}
EXTRAS = {"bare": {}, "attentive": {"squeeze_excitation": True, "pooling": "attention"}}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
both_blocks = pytest.mark.parametrize("blocks", ["plain", "residual"])
with_extras = pytest.mark.parametrize("extras", EXTRAS.values(), ids=EXTRAS)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors of these sizes cost more to share than to compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def classifier(seed=0, **settings):
    torch.manual_seed(seed)
    built = build_classifier(ClassifierSection(**settings), IN, OUT)
    assert isinstance(built, CNNClassifier)
    return built


def images(*size, batch=2):
    return torch.randn(batch, IN, *size, generator=torch.Generator().manual_seed(1))


def last_grid(net, image):
    """The logits, and the grid of the last features."""
    seen = []
    hook = net.last_features.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape[2:])))
    logits = net(image)
    hook.remove()
    (grid,) = seen
    return logits, grid


# Sizes


@both_blocks
@with_extras
@every_shape
@pytest.mark.parametrize("sides", [(16, 12, 8), (13, 11, 7), (5, 9, 3)], ids=str)
def test_every_size_is_answered_and_strides_round_up(shape, extras, blocks, sides):
    section = ClassifierSection(**shape, **extras, blocks=blocks)
    net, size = classifier(**shape, **extras, blocks=blocks), sides[: section.dimensions]
    logits, grid = last_grid(net, images(*size))
    assert logits.shape == (2, OUT) and logits.isfinite().all()
    assert grid == tuple(math.ceil(n / t) for n, t in zip(size, section.total_stride, strict=True))


def test_the_grid_by_hand():
    assert last_grid(classifier(dimensions=2, features=(2, 4, 6)), images(28, 28))[1] == (7, 7)
    assert last_grid(classifier(dimensions=2, features=(2, 4, 6, 8)), images(28, 28))[1] == (4, 4)


@both_blocks
def test_the_last_voxels_of_an_odd_size_are_seen(blocks):
    net, image = classifier(dimensions=2, features=(4, 6), blocks=blocks), images(9, 9)
    image.requires_grad_()
    net(image).square().sum().backward()
    assert (image.grad.abs().amax((0, 1)) > 0).all()


def test_filling_up_changes_nothing_that_convolutions_see():
    net, image = classifier(dimensions=2, features=(4, 6, 8)), images(13, 11)
    features = image
    for block in net.encoder:
        features = block(features)
    assert torch.equal(net(image), net.classifier(features.flatten(2).mean(2)))


@pytest.mark.parametrize(
    ("size", "told"), [((4, 3), "a single voxel"), ((8, 8, 8), "2 axes"), ((8,), "2 axes")]
)
def test_what_it_cannot_see_is_refused(size, told):
    net = classifier(dimensions=2, features=(4, 6, 8))
    for refuse in (lambda: net.check_size(size), lambda: net(torch.zeros(1, IN, *size))):
        with pytest.raises(ValueError, match=told):
            refuse()
    net.check_size((4, 5))
    assert net(torch.randn(1, IN, 4, 5)).isfinite().all()


# Weights


@both_blocks
@with_extras
@every_shape
def test_stages_hold_every_parameter_once_and_all_of_them_learn(shape, extras, blocks):
    net = classifier(**shape, **extras, blocks=blocks)
    held = [parameter for stage in net.stages for parameter in stage.parameters()]
    assert len(held) == len({id(p) for p in held}) == len(list(net.parameters()))
    assert len(net.stages) == len(net.encoder) + 1
    for stage, block in zip(net.stages, net.encoder, strict=False):
        assert {id(p) for p in block.parameters()} <= {id(p) for p in stage.parameters()}
    assert {id(p) for p in net.classifier.parameters()} <= {id(p) for p in net.stages[-1].parameters()}

    net(images(*(10, 14, 9)[: shape["dimensions"]])).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@with_extras
def test_the_seed_decides_the_weights(extras):
    first, again, other = (classifier(seed, **SHAPES["3D"], **extras).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


@both_blocks
@with_extras
@pytest.mark.parametrize("name", ["3D", "2D", "anisotropic"])
def test_an_attention_unets_encoder_is_taken_over_whole(name, extras, blocks):
    levels = {**SHAPES[name], "blocks": blocks}
    torch.manual_seed(7)
    unet, net = build_network(NetworkSection(**levels), IN, 5), classifier(**levels, **extras)
    fresh = net.classifier.weight.clone()
    transfer = load_pretrained(net, Source(unet.state_dict(), (0, 1), (None,) * OUT))

    taken = [key for key in net.state_dict() if key.startswith("encoder.")]
    assert sorted(transfer.loaded) == sorted(taken) and not transfer.adapted
    assert sorted(taken) == sorted(key for key in unet.state_dict() if key.startswith("encoder."))
    assert torch.equal(net.classifier.weight, fresh)
    features = images(*(8, 12, 16)[: len(unet.total_stride)])
    for ours, theirs in zip(net.encoder, unet.encoder, strict=True):
        assert torch.equal(ours(features), theirs(features))
        features = theirs(features)


@pytest.mark.parametrize(("ours", "theirs"), [(1, 3), (3, 1), (2, 1)])
def test_a_head_takes_the_rows_of_outputs_that_mean_the_same(ours, theirs):
    section = ClassifierSection(**SHAPES["2D"])
    target, source = build_classifier(section, 1, ours), build_classifier(section, 1, theirs)
    before = target.classifier.weight.clone()
    load_pretrained(target, Source(source.state_dict(), (0,), (theirs - 1, *(None,) * (ours - 1))))
    assert torch.equal(target.classifier.weight[0], source.classifier.weight[-1])
    assert torch.equal(target.classifier.bias[0], source.classifier.bias[-1])
    assert torch.equal(target.classifier.weight[1:], before[1:])


# What it does


@with_extras
def test_an_image_does_not_depend_on_the_others_of_its_batch(extras):
    net, image = classifier(**SHAPES["anisotropic"], **extras), images(7, 8, 9)
    torch.testing.assert_close(net(image)[:1], net(image[:1]))


def test_logits_are_not_activated():
    net = classifier(**SHAPES["2D"])
    net.classifier.weight.data *= 100
    logits = net(images(16, 16, batch=8))
    assert logits.min() < -1 and logits.max() > 1 and not torch.allclose(logits.sum(1), torch.ones(8))


@both_blocks
def test_dropout_acts_before_the_head_and_in_training_alone(blocks):
    net, image = classifier(**SHAPES["2D"], dropout=0.5, blocks=blocks), images(16, 16)
    net.encoder.eval()
    assert not torch.equal(net(image), net(image))
    net.eval()
    assert torch.equal(net(image), net(image))
    without = classifier(1, **SHAPES["2D"], blocks=blocks)
    without.load_state_dict(net.state_dict())
    assert torch.equal(net(image), without(image))


# Its parts


@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5), (1, 1)])
def test_average_pooling_is_torchs(size):
    features = images(*size)
    adaptive = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[len(size)](1)
    torch.testing.assert_close(AveragePooling()(features), adaptive(features).flatten(1))


@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)])
def test_attention_pooling_computes_the_equation_of_the_paper(size):
    torch.manual_seed(0)
    pooling, features = AttentionPooling(6), torch.randn(2, 6, *size)
    wide, narrow = pooling.hidden.weight, pooling.score.weight[0]
    for image, pooled in zip(features.flatten(2), pooling(features), strict=True):
        places = image.unbind(1)
        scores = [torch.exp(narrow @ torch.tanh(wide @ place + pooling.hidden.bias)) for place in places]
        expected = sum(score * place for score, place in zip(scores, places, strict=True)) / sum(scores)
        torch.testing.assert_close(pooled, expected)


def test_attention_that_sees_no_difference_averages_and_strong_attention_selects():
    pooling, features = AttentionPooling(4), torch.randn(2, 4, 3, 5)
    for parameter in pooling.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(pooling(features), features.flatten(2).mean(2))
    pooling.hidden.weight.data[0, 0] = 1.0
    pooling.score.weight.data[0, 0] = 1e4
    features[:, 0] = -1.0
    features[:, 0, 1, 2] = 1.0
    torch.testing.assert_close(pooling(features), features[:, :, 1, 2])


@pytest.mark.parametrize("channels", [1, 6, 16])
def test_squeeze_and_excitation_weights_channels_by_their_means(channels):
    torch.manual_seed(0)
    layer, features = SqueezeExcitation(channels), torch.randn(2, channels, 3, 4, 5)
    hidden = features.mean((2, 3, 4)) @ layer.squeeze.weight.T + layer.squeeze.bias
    hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    weights = (hidden @ layer.excite.weight.T + layer.excite.bias).sigmoid()
    torch.testing.assert_close(layer(features), features * weights[:, :, None, None, None])


def test_open_excitations_leave_the_network_that_has_none():
    net = classifier(**SHAPES["3D"], squeeze_excitation=True)
    bare = classifier(1, **SHAPES["3D"])
    missing, unexpected = bare.load_state_dict(net.state_dict(), strict=False)
    assert not missing and {name.split(".")[0] for name in unexpected} == {"excitations"}
    image = images(9, 8, 7)
    assert not torch.allclose(net(image), bare(image))
    for excitation in net.excitations:
        nn.init.constant_(excitation.excite.bias, 1e4)
    torch.testing.assert_close(net(image), bare(image))
