"""The memory-lean loss equals the textbook one."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.training.losses import DeepSupervision, DiceCrossEntropy


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


def test_a_perfect_prediction_costs_nothing_and_an_absent_structure_does_not_either():
    target = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    target[:, :2] = 1  # class 2 is absent
    logits = 50.0 * F.one_hot(target, 3).movedim(-1, 1) - 25
    assert DiceCrossEntropy(is_regions=False)(logits, target) < 1e-3


def test_deep_supervision_weights_sum_to_one():
    loss = DeepSupervision(lambda logits, target: logits.mean())
    levels = [torch.full((1, 2, 8 // n, 8 // n), 3.0) for n in (1, 2, 4)]
    assert torch.allclose(loss(levels, torch.zeros(1, 8, 8, dtype=torch.long)), torch.tensor(3.0))
    uneven = [torch.full((1, 2, 8, 8), 7.0), torch.zeros(1, 2, 4, 4)]
    assert torch.allclose(loss(uneven, torch.zeros(1, 8, 8, dtype=torch.long)), torch.tensor(14 / 3))


@pytest.mark.parametrize("is_regions", [False, True])
def test_coarse_targets_are_voxels_of_the_fine_one(is_regions):
    seen = []
    loss = DeepSupervision(lambda logits, target: seen.append(target) or logits.sum())
    fine = torch.arange(2 * 8 * 6 * 4).reshape(2, 8, 6, 4)
    target = fine[:, None].repeat(1, 3, 1, 1, 1) if is_regions else fine
    loss([torch.zeros(2, 3, 8, 6, 4), torch.zeros(2, 3, 4, 3, 4)], target)
    assert seen[1].shape[-3:] == (4, 3, 4)
    assert set(seen[1].flatten().tolist()) <= set(fine.flatten().tolist())
