"""Fewer bits where they are asked for and the device has units for them; never in a mask of a CPU."""

import pytest
import torch
from torch import nn

from pipeline.precision import autocast, inference_dtype, training_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("has_units", [False, True])
def test_a_cpu_learns_in_sixteen_bits_with_units_for_it_alone(monkeypatch, mixed, has_units):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_units})
    expected = torch.bfloat16 if mixed and has_units else torch.float32
    assert training_dtype(CPU, mixed=mixed) == expected
    assert inference_dtype(CPU, mixed=mixed) == torch.float32


def test_an_arm_cpu_names_no_such_units(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "aarch64", "bf16": True})
    assert training_dtype(CPU, mixed=True) == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_computed_has_the_precision_and_weights_keep_theirs(dtype):
    layer = nn.Conv3d(2, 3, 3)
    with autocast(CPU, dtype):
        made = layer(torch.randn(1, 2, 5, 5, 5))
    assert made.dtype == dtype
    made.float().sum().backward()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32
