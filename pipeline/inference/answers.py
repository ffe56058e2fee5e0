"""What is blended of the generators of an enhancer: their images in one scale, and what they change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.inference.window_runner import Network
from transforms.enhancement import Scale


def relate_scales(
    own: Sequence[Scale], shared: Sequence[Scale], device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Factor and summand `(C,)` from what a network gives to the scale of the first one; None if the same."""
    if tuple(own) == tuple(shared):
        return None
    factors = [a.deviation / b.deviation for a, b in zip(own, shared, strict=True)]
    summands = [(a.mean - b.mean) / b.deviation for a, b in zip(own, shared, strict=True)]
    return torch.tensor(factors, device=device), torch.tensor(summands, device=device)


def build_answer(network: nn.Module, relative: tuple[Tensor, Tensor] | None, middle: slice | None) -> Network:
    """What is blended of a network: what it gives, and if it deviates what that changed, and its square.

    Changes are small: the mean of their squares tells a spread that squared intensities would round away.
    """

    def answer(windows: Tensor) -> Tensor:
        made: Tensor = network(windows)
        if relative is not None:
            factors, summands = (values.view(-1, *[1] * (made.ndim - 2)) for values in relative)
            made = made * factors + summands
        if middle is None:
            return made
        change = made - windows[:, middle]
        return torch.cat((made, change, change.square()), dim=1)

    return answer
