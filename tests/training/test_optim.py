"""Schedules end where the budget ends; the average follows its definition and survives a stop."""

import pytest
import torch
from torch import nn

from pipeline.config import TrainingSection
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
