"""MONAI's classifiers: they compute what MONAI's own forward pass does, and offer what ours offers."""

import functools

import pytest
import torch
from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.efficientnet import EfficientNetBN
from monai.networks.nets.resnet import resnet18
from torch import nn
from torch.nn import functional

from pipeline.config.classification import ClassifierSection
from pipeline.networks import CLASSIFIERS, build_classifier
from pipeline.networks.foreign import fit_layout

IN, OUT = 2, 3
NAMES = sorted(CLASSIFIERS.keys() - {"cnn_classifier"})
SMALLEST = {"resnet18": 1, "resnet50": 1, "densenet121": 29, "efficientnet_b0": 32}
RESNET = {
    "spatial_dims": 2,
    "n_input_channels": IN,
    "num_classes": OUT,
    "conv1_t_stride": 2,
    "bias_downsample": False,
}
# ResNet-50 is compared with torchvision's layout in test_foreign.py.
MONAI = {
    "resnet18": lambda: resnet18(**RESNET),
    "densenet121": lambda: DenseNet121(2, IN, OUT),
    "efficientnet_b0": lambda: EfficientNetBN("efficientnet-b0", False, in_channels=IN, num_classes=OUT),
}
every_network = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(name, dimensions=2):
    torch.manual_seed(0)
    return build_classifier(ClassifierSection(name=name, dimensions=dimensions), IN, OUT)


@functools.cache
def outline(name):
    """The network in 3D without numbers: names and shapes alone."""
    with torch.device("meta"):
        return build(name, 3)


@pytest.mark.parametrize("name", MONAI)
def test_it_computes_and_learns_what_monais_own_does(name):
    torch.manual_seed(1)
    theirs, ours = MONAI[name](), build(name)
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.8, 1.2)
    ours.load_state_dict(fit_layout(theirs.state_dict(), ours))
    image, known = torch.randn(2, IN, 33, 40), torch.tensor([0, 2])
    torch.testing.assert_close(ours.eval()(image), theirs.eval()(image))

    gradients = []
    for network in (ours.train(), theirs.train()):
        torch.manual_seed(2)  # of what EfficientNet drops
        functional.cross_entropy(network(image), known).backward()
        gradients.append({key: parameter.grad for key, parameter in network.named_parameters()})
    mine, expected = gradients[0], fit_layout(gradients[1], ours)
    assert all(gradient.any() for gradient in mine.values())
    for key, gradient in mine.items():
        torch.testing.assert_close(gradient, expected[key])


@every_network
def test_stages_hold_every_parameter_once_in_the_order_in_which_it_answers(name):
    net = outline(name)
    held = [parameter for stage in net.stages for parameter in stage.parameters()]
    assert len(held) == len({id(p) for p in held}) == len(list(net.parameters()))
    assert net.stages[: len(net.encoder)] == list(net.encoder) and net.stages[-1] is net.classifier

    answered, grids = [], []
    for number, stage in enumerate(net.stages):
        stage.register_forward_hook(lambda *_, number=number: answered.append(number))
    net.last_features.register_forward_hook(lambda _, __, output: grids.append(tuple(output.shape[2:])))
    assert net(torch.empty(2, IN, 64, 128, 96, device="meta")).shape == (2, OUT)
    assert answered == list(range(len(net.stages))) and grids == [(2, 4, 3)]


@every_network
def test_the_smallest_image_is_answered_and_a_smaller_one_refused(name):
    net, side = outline(name).eval(), SMALLEST[name]
    assert net(torch.empty(1, IN, side, side, side, device="meta")).shape == (1, OUT)
    for size in ((40, 40, side - 1), (40, 40)):
        with pytest.raises(ValueError, match=r"voxels along every axis|3 axes"):
            net(torch.empty(1, IN, *size, device="meta"))


def test_the_seed_decides_the_weights():
    first, again = (build("efficientnet_b0").state_dict() for _ in range(2))
    assert all(torch.equal(first[key], tensor) for key, tensor in again.items())
