"""Schedules end where the budget ends; the average follows its definition and survives a stop."""

import copy

import pytest
import torch
from torch import nn

from pipeline.config import TrainingSection
from pipeline.training.muon import Muon, orthogonalise
from pipeline.training.optim import AveragedNetwork, build_optimizer, learning_rate


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_learning_rate_rises_only_in_the_warmup_and_ends_at_zero(schedule, warmup):
    section = TrainingSection(epochs=1, schedule=schedule, warmup_fraction=warmup, learning_rate=0.1)
    rates = [learning_rate(section, step / 100) for step in range(101)]
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(0.1) and top == round(100 * warmup)
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] > 0 and rates[-1] == pytest.approx(0, abs=1e-12)


def test_poly_is_nnunets():
    section = TrainingSection(epochs=1, learning_rate=0.01)
    assert learning_rate(section, 0.4) == pytest.approx(0.01 * 0.6**0.9)


def test_sgd_is_nesterov():
    network = nn.Linear(2, 2)
    optimizer = build_optimizer(TrainingSection(epochs=1, optimizer="sgd"), network.parameters())
    assert optimizer.defaults["nesterov"] and optimizer.defaults["momentum"] == 0.99


def _steps(optimizer, parameters, num=4):
    """Moves parameters with the same gradients whatever the optimizer."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(num):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_muon_moves_kernels_as_torchs_moves_matrices(shape):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    kernel, matrix = nn.Parameter(start.clone()[..., None, None]), nn.Parameter(start.clone())
    _steps(Muon([kernel], lr=0.01, weight_decay=0.1), [kernel])
    theirs = torch.optim.Muon([matrix], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    _steps(theirs, [matrix])
    moved, expected = kernel.detach().reshape(shape) - start, matrix.detach() - start
    # Theirs computes in 16 bits.
    assert (moved - expected).norm() < 0.03 * expected.norm()


def test_muon_moves_everything_else_as_adamw():
    start = [torch.randn(5), torch.randn(3, 4)]
    ours, theirs = ([nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    _steps(Muon(ours, lr=0.01, weight_decay=0.1), ours)
    _steps(torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1), theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_orthogonalising_brings_singular_values_near_one():
    values = torch.linalg.svdvals(orthogonalise(torch.randn(12, 40)))
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("shape", [(16, 27), (64, 3456), (96, 8)])
@pytest.mark.parametrize("rank", [None, 3])
def test_orthogonalising_is_five_steps_of_newton_and_schulz(shape, rank):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
    if rank is not None:  # a few directions dominate by far, as in gradients
        few = (torch.randn(size, rank, generator=generator, dtype=torch.float64) for size in shape)
        left, right = few
        matrix = left @ right.T + 1e-5 * matrix
    plain = matrix / matrix.norm()
    for _ in range(5):
        square = plain @ plain.T
        plain = 3.4445 * plain + (-4.7750 * square + 2.0315 * square @ square) @ plain
    torch.testing.assert_close(orthogonalise(matrix.float()).double(), plain, rtol=0, atol=2e-4)


def test_muon_goes_on_from_its_state_to_the_bit():
    network = nn.Conv3d(3, 4, 3)
    section = TrainingSection(epochs=1, optimizer="muon")
    optimizer = build_optimizer(section, network.parameters())
    _steps(optimizer, list(network.parameters()))
    again = copy.deepcopy(network)
    other = build_optimizer(section, again.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, many in ((optimizer, network), (other, again)):
        _steps(one, list(many.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_without_groups_an_optimizer_is_as_it_was(optimizer):
    """Its state is laid out as before there were depths: a checkpoint of then resumes."""
    network = nn.Sequential(nn.Conv3d(3, 4, 3), nn.Linear(2, 2))
    groups = build_optimizer(
        TrainingSection(epochs=1, optimizer=optimizer), network.parameters()
    ).param_groups
    assert [len(group["params"]) for group in groups] == ([1, 3] if optimizer == "muon" else [4])
    assert not any("factor" in group for group in groups)


def test_average_follows_its_definition_and_its_state_returns():
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    averaged = AveragedNetwork(network, decay=0.2)
    expected = network.weight.detach().clone()
    for step in range(1, 5):
        with torch.no_grad():
            network.weight.add_(torch.randn(2, 3))
        averaged.update(network)
        decay = min(0.2, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.weight.detach()
    assert torch.allclose(averaged.network.weight, expected)
    other = AveragedNetwork(nn.Linear(3, 2), decay=0.2)
    other.load_state_dict(averaged.state_dict())
    averaged.update(network)
    other.update(network)
    assert torch.equal(other.network.weight, averaged.network.weight)
