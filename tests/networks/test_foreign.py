"""Weights of others: their files are read without running anything, their layouts mean what they meant."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.classification import ClassifierSection
from pipeline.errors import ConfigError, InputError
from pipeline.networks import build_classifier
from pipeline.networks.foreign import fit_layout, foreign_source, read_weights
from pipeline.networks.pretrained import load_pretrained

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
WEIGHTS = {"conv1.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.ones(2)}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def classifier(name, in_channels=3, out_channels=2, *, dimensions=2):
    torch.manual_seed(0)
    return build_classifier(ClassifierSection(name=name, dimensions=dimensions), in_channels, out_channels)


def resnet_layout(name, *, dimensions=2, in_channels=3, classes=1000, counters=True):
    """Names and shapes of a published ResNet, as torchvision and timm write them."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(key, outward, inward, kernel):
        shapes[f"{key}.weight"] = (outward, inward, *(kernel,) * dimensions)

    def norm(key, channels):
        shapes.update(
            {f"{key}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
        )
        if counters:
            shapes[f"{key}.num_batches_tracked"] = ()

    convolution("conv1", 64, in_channels, 7)
    norm("bn1", 64)
    expansion, inward = (1 if name == "resnet18" else 4), 64
    for level, blocks in enumerate(DEPTHS[name]):
        width = 64 * 2**level
        for block in range(blocks):
            at = f"layer{level + 1}.{block}"
            kernels = (3, 3) if expansion == 1 else (1, 3, 1)
            widths = [inward, *[width] * (len(kernels) - 1), width * expansion]
            for number, kernel in enumerate(kernels):
                convolution(f"{at}.conv{number + 1}", widths[number + 1], widths[number], kernel)
                norm(f"{at}.bn{number + 1}", widths[number + 1])
            if inward != width * expansion:
                convolution(f"{at}.downsample.0", width * expansion, inward, 1)
                norm(f"{at}.downsample.1", width * expansion)
            inward = width * expansion
    if classes:
        shapes |= {"fc.weight": (classes, inward), "fc.bias": (classes,)}
    return shapes


def drawn(shapes):
    """Numbers under which no layer drowns another."""
    torch.manual_seed(1)
    weights: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(3)
        elif len(shape) > 1:
            weights[key] = torch.randn(shape) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        else:
            centre = 1.0 if key.endswith(("var", "weight")) else 0.0
            weights[key] = centre + 0.1 * torch.rand(shape)
    return weights


def empty(shapes):
    """Tensors that take no memory, of which only the shape is looked at."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def published_forward(weights, image):
    """ResNet's forward pass as its paper and torchvision define it, up to the pooled features."""

    def norm(key, features):
        mean, var, scale, shift = (
            weights[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(features, mean, var, scale, shift)

    def convolution(key, features, stride=1):
        kernel = weights[f"{key}.weight"]
        return functional.conv2d(features, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    features = functional.relu(norm("bn1", convolution("conv1", image, 2)))
    features = functional.max_pool2d(features, 3, 2, 1)
    blocks = sorted({tuple(key.split(".")[:2]) for key in weights if key.startswith("layer")})
    for layer, block in blocks:
        at, stride = f"{layer}.{block}", 2 if block == "0" and layer != "layer1" else 1
        is_bottleneck = f"{at}.conv3.weight" in weights
        body = features
        for number in range(1, 4 if is_bottleneck else 3):
            takes_stride = number == (2 if is_bottleneck else 1)
            body = norm(
                f"{at}.bn{number}", convolution(f"{at}.conv{number}", body, stride if takes_stride else 1)
            )
            body = functional.relu(body) if f"{at}.conv{number + 1}.weight" in weights else body
        if f"{at}.downsample.0.weight" in weights:
            features = norm(f"{at}.downsample.1", convolution(f"{at}.downsample.0", features, stride))
        features = functional.relu(features + body)
    return features.mean((2, 3))


# Layouts


@pytest.mark.parametrize("name", DEPTHS)
def test_published_weights_compute_what_they_computed_where_they_come_from(name):
    weights, net = drawn(resnet_layout(name)), classifier(name).eval()
    transfer = load_pretrained(net, foreign_source(weights, net))
    assert sorted(transfer.new) == ["classifier.bias", "classifier.weight"] == sorted(transfer.unused)
    assert not transfer.adapted
    image = torch.randn(2, 3, 45, 38)
    expected = functional.linear(
        published_forward(weights, image), net.classifier.weight, net.classifier.bias
    )
    torch.testing.assert_close(net(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "wrapping", "prefix"),
    [
        ("resnet18", None, ""),
        ("resnet18", "model", "module.backbone."),
        ("resnet50", "state_dict", "module."),
    ],
)
def test_medicalnets_volumes_are_found_under_what_stands_before_their_names(tmp_path, name, wrapping, prefix):
    layout = resnet_layout(name, dimensions=3, in_channels=1, classes=0, counters=False)
    layout["conv_seg.0.weight"] = (512, 32, 2, 2, 2)
    named = {prefix + key: tensor for key, tensor in empty(layout).items()}
    torch.save(named if wrapping is None else {"epoch": 3, wrapping: named}, tmp_path / "weights.pth")
    with torch.device("meta"):
        net = classifier(name, 1, dimensions=3)
    transfer = load_pretrained(net, foreign_source(read_weights(tmp_path / "weights.pth"), net))
    assert sorted(transfer.new) == ["classifier.bias", "classifier.weight"]
    assert transfer.unused == ("conv_seg.0.weight",) and not transfer.adapted


def test_another_resnet_than_the_published_one_keeps_what_does_not_fit_as_initialised():
    """As timm's `d` variants: three kernels at the entrance, and the projection behind a pooling."""
    layout = resnet_layout("resnet18")
    layout = {
        key: shape for key, shape in layout.items() if not key.startswith(("conv1.", "layer2.0.downsample"))
    }
    layout |= {"conv1.0.weight": (32, 3, 3, 3), "layer2.0.downsample.1.weight": (128, 64, 1, 1)}
    with torch.device("meta"):
        net = classifier("resnet18")
    transfer = load_pretrained(net, foreign_source(empty(layout), net))
    new = {key for key in transfer.new if "classifier" not in key}
    assert {"encoder.0.conv1.weight", "encoder.2.layer2.0.downsample.1.weight"} < new
    assert all(key.startswith(("encoder.0.conv1", "encoder.2.layer2.0.downsample")) for key in new)


@pytest.mark.parametrize("dot", ["", "."])
def test_torchvisions_densenet_has_shorter_names(dot):
    with torch.device("meta"):
        net = classifier("densenet121")
    theirs = {}
    for key, tensor in net.state_dict().items():
        name = re.sub(r"^encoder\.\d", "features", key)
        for part in ("norm", "conv"):
            name = name.replace(f".layers.{part}", f".{part}{dot}")
        theirs[name] = tensor
    assert "features.denseblock4.denselayer16.conv" + dot + "2.weight" in theirs
    assert fit_layout(theirs, net).keys() == net.state_dict().keys()


def test_what_is_already_ours_keeps_its_name():
    net = classifier("cnn_classifier", 1)
    assert fit_layout(net.state_dict(), net).keys() == net.state_dict().keys()


# From slices to volumes


def test_a_volume_that_is_the_same_in_all_slices_is_answered_as_its_slice():
    """Without borders along the depth, where zeros would differ from what goes on for ever."""
    weights = drawn(resnet_layout("resnet18"))
    flat, deep = classifier("resnet18"), classifier("resnet18", dimensions=3)
    for net in (flat, deep):
        transfer = load_pretrained(net.eval(), foreign_source(weights, net))
        assert set(transfer.new) == {"classifier.weight", "classifier.bias"} and not transfer.adapted
        for layer in net.modules():
            if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
                layer.padding_mode = "circular"
    deep.classifier.load_state_dict(flat.classifier.state_dict())
    image = torch.randn(1, 3, 32, 32)
    volume = image[..., None].expand(*image.shape, 32)
    torch.testing.assert_close(deep(volume), flat(image), rtol=1e-4, atol=1e-4)


def test_far_from_its_ends_a_volume_is_answered_as_its_slice():
    weights = drawn({"conv1.weight": (64, 3, 7, 7)})
    with torch.device("meta"):
        net = classifier("resnet18", dimensions=3)
    kernel = fit_layout(weights, net)["encoder.0.conv1.weight"]
    image = torch.randn(1, 3, 16, 16)
    answered = functional.conv3d(image[..., None].expand(*image.shape, 20), kernel, stride=2, padding=3)
    expected = functional.conv2d(image, weights["conv1.weight"], stride=2, padding=3)
    torch.testing.assert_close(
        answered[..., 2:8], expected[..., None].expand(*expected.shape, 6), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(answered[..., 0], expected)


# Other image channels


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("cnn_classifier", 3, 1),
        ("cnn_classifier", 1, 3),
        ("cnn_classifier", 3, 2),
        ("resnet18", 3, 1),
        ("densenet121", 3, 1),
        ("efficientnet_b0", 1, 2),
    ],
)
def test_other_image_channels_that_look_alike_are_answered_alike(name, theirs, ours):
    source, target = classifier(name, theirs).eval(), classifier(name, ours).eval()
    target.classifier.load_state_dict(source.classifier.state_dict())
    transfer = load_pretrained(target, foreign_source(source.state_dict(), target))
    (reader,) = transfer.adapted
    assert reader.startswith("encoder.0.") and target.state_dict()[reader].shape[1] == ours
    image = torch.randn(1, 1, 32, 32)
    expected = source(image.expand(-1, theirs, -1, -1))
    torch.testing.assert_close(target(image.expand(-1, ours, -1, -1)), expected, rtol=1e-4, atol=1e-4)


# Files


def test_both_kinds_of_files_give_their_tensors(tmp_path):
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    torch.save({"args": {"lr": 0.1}, "state_dict": WEIGHTS}, tmp_path / "weights.pth")
    torch.save(WEIGHTS, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("weights.safetensors", "weights.pth", "old.bin"):
        read = read_weights(tmp_path / name)
        assert read.keys() == WEIGHTS.keys() and all(torch.equal(read[key], WEIGHTS[key]) for key in read)


class _Creates:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, zipped):
    marker, path = tmp_path / "marker", tmp_path / "weights.pth"
    content = {**WEIGHTS, "more": _Creates(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"weights\.pth: .*could run code.*weights-refused"):
        read_weights(path)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="weights-refused"):
        read_weights(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()


@pytest.mark.parametrize("kind", ["safetensors", "zip", "old"])
def test_a_damaged_file_is_refused_or_read_but_never_a_crash(tmp_path, kind):
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 41):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_weights(path)
    for position in range(0, len(whole), 29):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            read_weights(path)
        except InputError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, [torch.ones(1)], torch.ones(2), {"model": {"a": 1}}], ids=repr
)
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="weights-none"):
        read_weights(tmp_path / "weights.pth")


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path, found in ((tmp_path / "weights.pth", "no file"), (tmp_path, "a folder")):
        with pytest.raises(ConfigError, match=f"this is {found}"):
            read_weights(path)
