"""What a step keeps, counted without computing."""

import pytest
import torch

from pipeline.config import NetworkSection
from pipeline.networks import AttentionUNet, build_network
from pipeline.networks.footprint import saved_bytes


@pytest.mark.parametrize("section", [{}, {"dimensions": 2, "blocks": "residual", "attention_gates": False}])
def test_it_is_what_a_real_step_keeps(section):
    section = NetworkSection(features=(4, 8), **section)
    network = build_network(section, 2, 3).train()
    size = (16,) * section.dimensions
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.forward_deep(torch.zeros(2, 2, *size))
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert saved_bytes(network, AttentionUNet.forward_deep, (2, 2, *size)) == pytest.approx(real, rel=0.02)
    assert next(network.parameters()).device.type == "cpu"


def test_a_step_that_no_machine_could_take_costs_nothing_to_count():
    network = build_network(NetworkSection(features=(16, 32)), 1, 2)
    assert saved_bytes(network, AttentionUNet.forward_deep, (1, 1, 4096, 4096, 4096)) > 2**44
