"""Muon: steps of equal length in every direction of a convolution kernel's matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

_MOMENTUM = 0.95
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
# Of a polynomial that draws singular values towards 1 in few steps; Jordan et al.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
# Makes a step as long as one of AdamW, so that both share a learning rate; Liu et al.
_ADAMW_LENGTH = 0.2


class Muon(torch.optim.Optimizer):
    """Muon for convolution kernels, AdamW for everything else.

    A kernel is taken for a matrix, output channels by all the rest (transposed ones: input channels). Its
    momentum's singular values are all brought near 1, so that rare directions are learned as fast as those
    that dominate the gradient.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the length of a
    step after Liu et al., "Muon is scalable for LLM training", 2025.

    Args:
        parameters: Of a network, or groups of them; each group becomes two, its kernels and its others.
        lr: Learning rate of both.
        weight_decay: Decoupled, of both.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float,
    ) -> None:
        groups = []
        for group in _as_groups(parameters):
            kernels = [p for p in group["params"] if _is_kernel(p)]
            others = [p for p in group["params"] if not _is_kernel(p)]
            groups += [{**group, "params": kernels}, {**group, "params": others}]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    # torch's gives back what a closure gives; there is none here.
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        assert closure is None, "gradients are computed before"
        for kernels, others in zip(self.param_groups[::2], self.param_groups[1::2], strict=True):
            for parameter in kernels["params"]:
                if parameter.grad is not None:
                    self._step_kernel(parameter, parameter.grad, kernels["lr"], kernels["weight_decay"])
            self._step_others(others)

    def _step_kernel(self, kernel: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[kernel]
        if not state:
            state["momentum"] = torch.zeros_like(kernel)
        momentum = state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        direction = orthogonalise(gradient.lerp(momentum, _MOMENTUM).flatten(1))
        length = _ADAMW_LENGTH * max(direction.shape) ** 0.5
        kernel.mul_(1 - lr * weight_decay).add_(direction.view_as(kernel), alpha=-lr * length)

    def _step_others(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["mean"] = torch.zeros_like(parameter)
                state["square"] = torch.zeros_like(parameter)
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters],
            [state["mean"] for state in states],
            [state["square"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=_EPSILON,
            maximize=False,
        )


def orthogonalise(matrix: Tensor) -> Tensor:
    """Brings a matrix near to the nearest one with orthonormal rows or columns (Newton and Schulz).

    Each step multiplies the matrix `X` by a polynomial of its Gram matrix `X X'`, and all these polynomials
    commute. So their product and the next Gram matrix are made of small square matrices alone, and the long
    rows of `X` are gone through twice instead of ten times.

    Source: Jordan et al., 2024, with their five steps and coefficients.

    Args:
        matrix: `(rows, columns)` float32, not all zero.

    Returns:
        `(rows, columns)`; singular values lie between about 0.7 and 1.2.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide: Tensor = matrix.T if is_tall else matrix
    wide = wide / (wide.norm() + 1e-7)
    gram = wide @ wide.T
    product = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(_NUM_ITERATIONS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor @ product
        gram = factor @ gram @ factor
    wide = product @ wide
    return wide.T if is_tall else wide


def _as_groups(parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    given = list(parameters)
    groups = [group for group in given if isinstance(group, dict)]
    return groups or [{"params": given}]


def _is_kernel(parameter: Tensor) -> bool:
    return parameter.ndim >= 4
