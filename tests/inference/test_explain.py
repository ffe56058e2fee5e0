"""A map shows what the network used: it follows the weights, finds the blob, and lies where it should."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.visualize import GradCAM
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy.stats import spearmanr
from torch import nn

from pipeline.inference.explain import METHODS, explain, grad_cam, map_name, occlusion_map, to_patient_grid
from pipeline.volume import Grid
from transforms.preprocessing import Preprocessing, preprocess

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
SIZES = {2: (28, 36), 3: (16, 20, 24)}
RADIUS = 4.0
ORIENTATIONS = ["".join(codes) for order in permutations(("RL", "AP", "SI")) for codes in product(*order)]


class Classifier(nn.Module):
    """Of a classifier's interface, with all that a network may have and a map must leave alone."""

    def __init__(self, dimensions, num_channels=1, num_classes=2):
        super().__init__()
        conv = CONVOLUTION[dimensions]
        self.body = nn.Sequential(
            conv(num_channels, 8, 5, 2, 2), nn.ReLU(inplace=True), nn.Dropout(0.1), conv(8, 8, 3, 1, 1)
        )
        self.activation = nn.LeakyReLU(0.01, inplace=True)
        self.head = nn.Linear(8, num_classes)

    @property
    def last_features(self):
        return self.body

    def forward(self, image):
        features = self.activation(self.body(image))
        return self.head(features.flatten(2).amax(2) + features.flatten(2).mean(2))


def draw(dimensions, count, seed):
    """Noise with a dark blob, and in every second image (class 1) a bright one; and where that is."""
    generator = torch.Generator().manual_seed(seed)
    size = SIZES[dimensions]
    classes = torch.arange(count) % 2
    room = torch.tensor(size) - 2 * int(RADIUS) - 1
    centres = (torch.rand(2, count, dimensions, generator=generator) * room + RADIUS).round()
    places = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"))
    offsets = places - centres.reshape(2, count, dimensions, *[1] * dimensions)
    dark, bright = (offsets.square().sum(2) <= RADIUS**2).float()
    images = 0.3 * torch.randn(count, *size, generator=generator)
    images += 2 * bright * classes.reshape(count, *[1] * dimensions) - 2 * dark
    return images[:, None], classes, centres[1]


@pytest.fixture(scope="module", params=[2, 3], ids=["2d", "3d"])
def trained(request):
    """A network that looks for bright blobs, and new images that have one."""
    torch.manual_seed(0)
    network = Classifier(request.param)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    images, classes, _ = draw(request.param, 96, seed=1)
    for step in range(30):
        some = slice(16 * (step % 6), 16 * (step % 6) + 16)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[some]), classes[some]).backward()
        optimizer.step()
    network.eval().zero_grad()
    images, classes, centres = draw(request.param, 40, seed=2)
    with torch.no_grad():
        assert (network(images).argmax(1) == classes).float().mean() > 0.9
    return network, images[classes == 1][:8], centres[classes == 1][:8]


def rank_correlation(one, other):
    return spearmanr(one.flatten(), other.flatten()).statistic


# What a map shows.


@pytest.mark.parametrize("method", METHODS)
def test_a_map_peaks_at_the_blob(trained, method):
    network, images, centres = trained
    half_box = max(images.shape[2:]) / 8 if method == "occlusion" else 0  # it need not hide all of the blob
    for image, centre in zip(images, centres, strict=True):
        found = explain(network, image, 1, method)
        assert found.shape == image.shape[1:]
        assert found.dtype == torch.float32
        assert found.min() >= (0 if method == "grad_cam" else -1)
        assert found.max() <= 1
        near = (found >= 0.8 * found.max()).nonzero().float().mean(0)  # a plateau has no single peak
        assert torch.linalg.vector_norm(near - centre) <= RADIUS + half_box


@pytest.mark.parametrize("method", METHODS)
def test_other_weights_give_another_map_and_the_same_weights_the_same(trained, method):
    """The sanity check of Adebayo et al. 2018: a map that does not depend on the weights explains nothing."""
    network, images, _ = trained
    found = explain(network, images[0], 1, method)
    assert torch.equal(found, explain(network, images[0], 1, method))
    likeness = []
    for seed in range(8):
        torch.manual_seed(seed)
        other = Classifier(images.ndim - 2).eval()
        likeness.append(rank_correlation(found, explain(other, images[0], 1, method)))
    assert abs(np.mean(likeness)) < 0.4


@pytest.mark.parametrize("method", METHODS)
def test_taking_away_what_a_map_marks_costs_more_than_taking_away_anything(trained, method):
    """The deletion test of Petsiuk et al. 2018: the area under the probability while voxels are removed."""
    network, images, _ = trained
    generator = torch.Generator().manual_seed(0)

    def area(image, order):
        shares = torch.linspace(0, 0.25, 11)
        copies = image.repeat(len(shares), *[1] * image.ndim)
        for copy, share in zip(copies, shares, strict=True):
            copy.flatten()[order[: round(float(share) * order.numel())]] = image.mean()
        with torch.no_grad():
            return float(network(copies).softmax(1)[:, 1].mean())

    marked = [area(i, explain(network, i, 1, method).flatten().argsort(descending=True)) for i in images]
    anything = [area(i, torch.randperm(i.numel(), generator=generator)) for i in images]
    assert np.mean(marked) < np.mean(anything) - 0.2
    assert sum(m < a for m, a in zip(marked, anything, strict=True)) >= 7


def test_grad_cam_is_that_of_monai(trained):
    network, images, _ = trained
    network.activation.inplace = False  # with which MONAI's hooks cannot live
    reference = GradCAM(network, "body", postprocessing=lambda found: found / found.max())
    try:
        theirs = reference(images[:1].clone().requires_grad_(), class_idx=1)[0, 0].detach()
    finally:
        network.activation.inplace = True
        network.body._forward_hooks.clear()
        network.body._backward_hooks.clear()
        network.zero_grad()
    assert torch.allclose(grad_cam(network, images[0], 1), theirs, atol=1e-5)


def test_an_occlusion_map_is_the_mean_drop_over_the_boxes_that_hid_a_voxel(trained):
    network, images, _ = trained
    image = images[0].repeat(2, *[1] * (images.ndim - 2))  # two channels with means of their own
    image[1] += 5
    torch.manual_seed(2)
    network = Classifier(image.ndim - 1, num_channels=2, num_classes=3).eval()
    box = [size // 2 for size in image.shape[1:]]
    found = occlusion_map(network, image, 2, box, overlap=0, batch_size=3, activation=torch.sigmoid)
    halves = [(slice(0, size), slice(size, None)) for size in box]
    with torch.no_grad():
        whole = network(image[None]).sigmoid()[0, 2]
        for place in product(*halves):
            hidden = image.clone()
            for channel, original in zip(hidden, image, strict=True):
                channel[place] = original.mean()
            drop = whole - network(hidden[None]).sigmoid()[0, 2]
            assert torch.allclose(found[place], drop, atol=1e-6)


def test_the_size_of_a_batch_does_not_matter(trained):
    network, images, _ = trained
    maps = [explain(network, images[0], 1, "occlusion", batch_size=size) for size in (1, 7, 1000)]
    assert torch.allclose(maps[0], maps[1], atol=1e-6)
    assert torch.allclose(maps[0], maps[2], atol=1e-6)


def test_an_occlusion_never_sees_more_images_at_once_than_a_batch_nor_more_than_343_in_all():
    for shape in [(1, 1, 1), (5, 11, 3), (40, 28, 33)]:
        seen = []

        class Counting(nn.Module):
            def forward(self, images, seen=seen):
                seen.append(len(images))
                return images.flatten(1)[:, :1].repeat(1, 2)

        explain(Counting(), torch.zeros(1, *shape), 0, "occlusion", batch_size=5)
        assert max(seen) <= 5
        assert sum(seen) <= 1 + 7**3


def test_what_speaks_against_a_class_is_not_shown_as_speaking_for_it():
    network = Classifier(2).eval()
    with torch.no_grad():
        network.body[-1].weight.zero_()
        network.body[-1].bias.fill_(1.0)
        network.head.weight.fill_(-1.0)
    found = grad_cam(network, torch.randn(1, 28, 28), 0)
    assert torch.equal(found, torch.zeros(28, 28))


@pytest.mark.parametrize("method", METHODS)
def test_scores_that_are_not_numbers_are_said(method):
    network = Classifier(2)
    with torch.no_grad():
        network.head.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not numbers"):
        explain(network, torch.randn(1, 16, 16), 0, method)


def test_a_map_is_called_after_its_case_class_and_method():
    assert map_name("scan_1", "pneumonia", "grad_cam") == "scan_1_pneumonia_grad_cam"
    assert map_name("1", "../Größe > 3 cm\n", "occlusion") == "1_..-Größe-3-cm-_occlusion"


# What is left of it.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("breaks", [False, True], ids=["", "broken"])
def test_the_network_is_left_as_it_was(method, breaks):
    network = Classifier(2).train()
    network.body.eval()  # as a frozen part is
    network.body[0].weight.requires_grad_(False)
    network(torch.randn(1, 1, 16, 16)).sum().backward()
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

    def state():
        modules = [(m.training, *(len(getattr(m, kind)) for kind in hooks)) for m in network.modules()]
        gradients = [None if p.grad is None else p.grad.tolist() for p in network.parameters()]
        flags = [(p.requires_grad, p.tolist()) for p in network.parameters()]
        return modules, gradients, flags, network.activation.inplace, torch.is_grad_enabled()

    image = torch.randn(1, 16, 16)
    before, seen = state(), image.clone()
    if breaks:
        with pytest.raises(IndexError):
            explain(network, image, 9, method)
    else:
        found = explain(network, image, 0, method)
        assert not found.requires_grad
        assert torch.equal(found, explain(network, image, 0, method))  # nothing is dropped
    assert state() == before
    assert torch.equal(image, seen)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_and_a_frozen_network_get_the_same_map(method, mode):
    network = Classifier(3).eval()
    image = torch.randn(1, 12, 12, 12)
    expected = explain(network, image, 1, method)
    network.requires_grad_(False)
    with mode():
        assert torch.equal(explain(network, image.clone(), 1, method), expected)
        assert not torch.is_grad_enabled()


# Where in the patient.


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("num_slices", [1, 7])
def test_a_map_has_its_maximum_at_the_same_place_of_the_patient(codes, num_slices):
    """Through the network's grid and back: oriented, resampled, then its middle cropped."""
    shape, spacing = (21, 26, num_slices), (1.1, 0.8, 3.0)
    tilt = nib.eulerangles.euler2mat(0.1, 0.2, -0.05)
    place = (12, 9, num_slices // 2)
    affine = nib.affines.from_matvec(tilt * spacing, (-14, 33, 5))
    world = nib.affines.apply_affine(affine, place)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    stored = nib.apply_orientation(np.zeros(shape, np.float32), turn)
    grid = Grid(stored.shape, affine @ inv_ornt_aff(turn, shape))
    assert grid.orientation == codes

    prepared = preprocess(Preprocessing(spacing=(0.7, 0.7, 3.0)), [stored], grid.affine)
    cut = 3
    seen = prepared.image[0, cut:-cut, cut:-cut]
    seen_affine = prepared.affine @ nib.affines.from_matvec(np.eye(3), (cut, cut, 0))
    centre = nib.affines.apply_affine(np.linalg.inv(seen_affine), world)
    assert (np.abs(centre[2] - np.rint(centre[2])) < 1e-3).all()
    places = np.stack(np.meshgrid(*map(np.arange, seen.shape), indexing="ij"), axis=-1)
    found = torch.from_numpy(np.exp(-((places - centre) ** 2).sum(-1) / 8)).float()

    brought = to_patient_grid(found[..., 0] if num_slices == 1 else found, seen_affine, grid)
    assert brought.shape == grid.shape
    assert brought.dtype == np.float32
    peak = nib.affines.apply_affine(grid.affine, np.unravel_index(brought.argmax(), brought.shape))
    assert np.allclose(peak, world, atol=1e-6)

    nowhere = to_patient_grid(torch.ones_like(found), seen_affine, grid) == 0
    indices = np.stack(np.indices(grid.shape), axis=-1)
    in_map = nib.affines.apply_affine(np.linalg.inv(seen_affine) @ grid.affine, indices)
    is_outside = ((in_map < -0.51) | (in_map > np.array(seen.shape) - 0.49)).any(-1)
    assert np.array_equal(nowhere, is_outside)
    assert nowhere.any()
