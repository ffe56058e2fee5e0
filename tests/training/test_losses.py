"""The memory-lean loss equals the textbook one."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.training.losses import IGNORED, DeepSupervision, DiceCrossEntropy


def textbook(logits, target, *, is_regions):
    """With one-hot targets and everything in double precision."""
    logits = logits.double()
    if is_regions:
        probabilities, truth, classes = logits.sigmoid(), target.double(), slice(None)
        cross_entropy = F.binary_cross_entropy(probabilities, truth)
    else:
        probabilities, classes = logits.softmax(1), slice(1, None)
        truth = F.one_hot(target, logits.shape[1]).movedim(-1, 1).double()
        cross_entropy = -(truth * probabilities.log()).sum(1).mean()
    axes = [0, *range(2, logits.ndim)]
    overlap = (probabilities * truth).sum(axes)
    dice = (2 * overlap + 1e-5) / (probabilities.sum(axes) + truth.sum(axes) + 1e-5)
    return cross_entropy + 1 - dice[classes].mean()


@pytest.mark.parametrize("is_regions", [False, True])
@pytest.mark.parametrize("size", [(6, 5), (6, 5, 4)])
def test_equals_the_textbook(is_regions, size):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, *size, requires_grad=True)
    target = torch.randint(0, 2, (2, 3, *size)).float() if is_regions else torch.randint(0, 3, (2, *size))
    found = DiceCrossEntropy(is_regions=is_regions)(logits, target)
    expected = textbook(logits, target, is_regions=is_regions)
    assert torch.allclose(found.double(), expected, atol=1e-6)
    (found_gradient,) = torch.autograd.grad(found, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(found_gradient, expected_gradient, atol=1e-6)


@pytest.mark.parametrize("is_regions", [False, True])
def test_alone_and_with_all_labels_it_is_to_the_bit_the_sum_of_two_means(is_regions):
    """Sums over processes are no reason to round otherwise: the figures of former runs come again.

    Of one voxel, so that no sum depends on its order.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits = torch.randn(1, 4, 1, 1, generator=generator)
        target = torch.randint(0, 4, (1, 1, 1), generator=generator)
        truth = F.one_hot(target, 4).movedim(-1, 1).float()
        if is_regions:
            target, probabilities, first = truth, logits.sigmoid(), 0
            cross_entropy = F.binary_cross_entropy_with_logits(logits, truth)
        else:
            probabilities, first = logits.log_softmax(1).exp(), 1
            cross_entropy = F.cross_entropy(logits, target)
        dice = (2 * probabilities * truth + 1e-5) / (probabilities + truth + 1e-5)
        expected = cross_entropy + 1 - dice[:, first:].mean()
        assert torch.equal(DiceCrossEntropy(is_regions=is_regions)(logits, target), expected)


def test_a_perfect_prediction_costs_nothing_and_an_absent_structure_does_not_either():
    target = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    target[:, :2] = 1  # class 2 is absent
    logits = 50.0 * F.one_hot(target, 3).movedim(-1, 1) - 25
    assert DiceCrossEntropy(is_regions=False)(logits, target) < 1e-3


def test_deep_supervision_weights_sum_to_one():
    loss = DeepSupervision(lambda logits, *_: logits.mean())
    levels = [torch.full((1, 2, 8 // n, 8 // n), 3.0) for n in (1, 2, 4)]
    assert torch.allclose(loss(levels, torch.zeros(1, 8, 8, dtype=torch.long)), torch.tensor(3.0))
    uneven = [torch.full((1, 2, 8, 8), 7.0), torch.zeros(1, 2, 4, 4)]
    assert torch.allclose(loss(uneven, torch.zeros(1, 8, 8, dtype=torch.long)), torch.tensor(14 / 3))


@pytest.mark.parametrize("is_regions", [False, True])
def test_coarse_targets_are_voxels_of_the_fine_one(is_regions):
    seen = []
    loss = DeepSupervision(lambda logits, target, _: seen.append(target) or logits.sum())
    fine = torch.arange(2 * 8 * 6 * 4).reshape(2, 8, 6, 4)
    target = fine[:, None].repeat(1, 3, 1, 1, 1) if is_regions else fine
    loss([torch.zeros(2, 3, 8, 6, 4), torch.zeros(2, 3, 4, 3, 4)], target)
    assert seen[1].shape[-3:] == (4, 3, 4)
    assert set(seen[1].flatten().tolist()) <= set(fine.flatten().tolist())


# Of four channels the last is unlabelled in the first sample, the last two in the second.
LABELLED = torch.tensor([[True, True, True, False], [True, True, False, False]])


def partly_labelled(*, is_regions, size=(6, 5, 4)):
    """Logits and a target; a third of the voxels is ignored. Some voxels have an unlabelled class."""
    torch.manual_seed(0)
    logits = torch.randn(2, 4, *size, requires_grad=True)
    ignored = torch.rand(2, *size) < 0.3
    if is_regions:
        target = torch.randint(0, 2, (2, 4, *size)).float()
        return logits, target.masked_fill(ignored[:, None], IGNORED)
    return logits, torch.randint(0, 4, (2, *size)).masked_fill(ignored, IGNORED)


def plain_definition(logits, target, labelled, *, is_regions):
    """Voxel by voxel, in double precision."""
    num_channels = logits.shape[1]
    probabilities = logits.double().sigmoid() if is_regions else logits.double().softmax(1)
    losses, sums = [], {}
    for sample in range(len(logits)):
        unlabelled = [k for k in range(num_channels) if not labelled[sample, k]]
        p_voxels = probabilities[sample].flatten(1).T
        for p, t in zip(p_voxels, target[sample].reshape(-1, p_voxels.shape[0]).T, strict=True):
            if t[0] == IGNORED:
                continue
            if is_regions:
                truth = t
                losses += [
                    -(p[k] if t[k] else 1 - p[k]).log() for k in range(num_channels) if k not in unlabelled
                ]
            else:
                truth = [float(k == t[0]) for k in range(num_channels)]
                members = [0, *unlabelled] if t[0] == 0 else [int(t[0])]
                losses.append(-sum(p[k] for k in members).log())
            for k in range(0 if is_regions else 1, num_channels):
                if k not in unlabelled:
                    overlap, sizes = sums.get(k, (0, 0))
                    sums[k] = overlap + p[k] * truth[k], sizes + p[k] + truth[k]
    dice = [(2 * overlap + 1e-5) / (sizes + 1e-5) for overlap, sizes in sums.values()]
    return sum(losses) / len(losses) + 1 - sum(dice) / len(dice)


@pytest.mark.parametrize("is_regions", [False, True])
@pytest.mark.parametrize("size", [(6, 5), (4, 3, 3)])
def test_unlabelled_structures_and_ignored_voxels_follow_the_plain_definition(is_regions, size):
    logits, target = partly_labelled(is_regions=is_regions, size=size)
    found = DiceCrossEntropy(is_regions=is_regions, has_ignored=True)(logits, target, LABELLED)
    expected = plain_definition(logits, target, LABELLED, is_regions=is_regions)
    assert torch.allclose(found.double(), expected, atol=1e-6)
    (found_gradient,) = torch.autograd.grad(found, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(found_gradient, expected_gradient, atol=1e-6)


@pytest.mark.parametrize("is_regions", [False, True])
def test_where_everything_is_labelled_the_loss_is_the_plain_one_to_the_bit(is_regions):
    """As the textbook's, in single precision and in the order of the sums that it had from the start."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 6, 5, 4)
    target = torch.randint(0, 2, (2, 3, 6, 5, 4)).float() if is_regions else torch.randint(0, 3, (2, 6, 5, 4))
    axes = [0, 2, 3, 4]
    if is_regions:
        cross_entropy, p = F.binary_cross_entropy_with_logits(logits, target), logits.sigmoid()
        overlap, sizes = (p * target).sum(axes), p.sum(axes) + target.sum(axes)
    else:
        cross_entropy, p = F.nll_loss(F.log_softmax(logits, 1), target), F.log_softmax(logits, 1).exp()
        overlap = torch.stack([(p[:, k] * (target == k)).sum() for k in (1, 2)])
        sizes = p.sum(axes)[1:] + torch.stack([(target == k).sum() for k in (1, 2)])
    expected = cross_entropy + 1 - ((2 * overlap + 1e-5) / (sizes + 1e-5)).mean()
    assert torch.equal(DiceCrossEntropy(is_regions=is_regions)(logits, target), expected)
    complete = torch.ones(2, 3, dtype=torch.bool)
    general = DiceCrossEntropy(is_regions=is_regions, has_ignored=True)(logits, target, complete)
    assert torch.allclose(general, expected, atol=1e-6)


def test_background_may_be_any_unlabelled_class():
    """Moving probability between the background and unlabelled classes of a sample costs nothing."""
    logits, target = partly_labelled(is_regions=False)
    target[1] = target[1].clamp_max(1)
    probabilities = logits.detach().softmax(1)
    moved = probabilities.clone()
    moved[1, 0] += 0.9 * (probabilities[1, 2] + probabilities[1, 3])
    moved[1, 2:] *= 0.1
    loss = DiceCrossEntropy(is_regions=False, has_ignored=True)
    assert torch.allclose(loss(moved.log(), target, LABELLED), loss(probabilities.log(), target, LABELLED))
    assert not torch.allclose(loss(moved.log(), target), loss(probabilities.log(), target))


def test_an_unlabelled_region_gets_no_gradient():
    logits, target = partly_labelled(is_regions=True)
    loss = DiceCrossEntropy(is_regions=True, has_ignored=True)(logits, target, LABELLED)
    (gradient,) = torch.autograd.grad(loss, logits)
    is_touched = gradient.flatten(2).ne(0).any(2)
    assert torch.equal(is_touched, LABELLED)


@pytest.mark.parametrize("is_regions", [False, True])
@pytest.mark.parametrize("labelled", [None, LABELLED])
def test_what_is_said_of_ignored_voxels_changes_nothing(is_regions, labelled):
    logits, target = partly_labelled(is_regions=is_regions)
    ignored = (target[:, :1] if is_regions else target[:, None]) == IGNORED
    loss = DiceCrossEntropy(is_regions=is_regions, has_ignored=True)
    elsewhere = torch.where(ignored, 7 * torch.randn_like(logits), logits)
    assert torch.equal(loss(elsewhere, target, labelled), loss(logits, target, labelled))
    (gradient,) = torch.autograd.grad(loss(logits, target, labelled), logits)
    assert not gradient.masked_select(ignored.expand_as(gradient)).any()


@pytest.mark.parametrize("is_regions", [False, True])
def test_a_batch_that_says_nothing_costs_nothing(is_regions):
    logits, target = partly_labelled(is_regions=is_regions)
    nothing = torch.full_like(target, IGNORED)
    labelled = LABELLED & False if is_regions else torch.tensor([[True, False, False, False]] * 2)
    loss = DiceCrossEntropy(is_regions=is_regions, has_ignored=True)
    for costs_nothing in (loss(logits, nothing, LABELLED), loss(logits, target.clamp_max(0), labelled)):
        assert costs_nothing.abs() < 1e-6 and costs_nothing.isfinite()
        (gradient,) = torch.autograd.grad(costs_nothing, logits)
        assert gradient.abs().max() < 1e-6


THROWS_ON_A_GPU = {"bincount", "cumsum", "grid_sampler_3d_backward", "histc", "kthvalue", "put_"}
"""Of the operators that `torch.use_deterministic_algorithms` names, those that a loss could come to use."""


class Operators(TorchDispatchMode):
    """Collects those without a deterministic implementation on a GPU."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        name = operator.overloadpacket.__name__
        reduces = name.startswith("nll_loss") and name.endswith("_forward") and arguments[3] != 0
        if reduces or name in THROWS_ON_A_GPU:
            self.found.add(name)
        return operator(*arguments, **options or {})


@pytest.mark.parametrize("size", [(6, 5), (6, 5, 4)])
@pytest.mark.parametrize("is_regions", [False, True])
@pytest.mark.parametrize("has_ignored", [False, True])
@pytest.mark.parametrize("labelled", [None, LABELLED])
def test_a_gpu_can_compute_it_deterministically(is_regions, has_ignored, labelled, size):
    logits, target = partly_labelled(is_regions=is_regions, size=size)
    loss = DiceCrossEntropy(is_regions=is_regions, has_ignored=has_ignored)
    with Operators() as operators:
        loss(logits, target if has_ignored else target.clamp_min(0), labelled).backward()
    assert operators.found == set()
