"""Scores of a whole volume from a network that sees one window at a time: one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from pipeline.config import InferenceSection


@dataclass(frozen=True, slots=True)
class Scores:
    """What the windows add up to.

    Attributes:
        logits: `(K, H, W, D)` float32, blended over windows and averaged over flips.
        num_windows: Windows that the network saw, flips not counted.
    """

    logits: Tensor
    num_windows: int


def predict_scores(
    network: Callable[[Tensor], Tensor], image: Tensor, window_size: Sequence[int], section: InferenceSection
) -> Scores:
    """Slides windows over a volume and blends the network's logits.

    Args:
        network: `(B, C, *window)` → `(B, K, *window)` logits, on the device of `image`.
        image: `(C, H, W, D)` float32. Where it is smaller than a window it is padded with 0 for the network.
        window_size: Voxels per axis; with two axes, every slice along the last image axis is predicted alone.
        section: Overlap, blending, batch size and flips.

    Returns:
        Scores on the grid of `image`.
    """
    is_2d = len(window_size) == 2
    # Slices of a 2D job become the batch; MONAI slides over each.
    batch = image.movedim(-1, 0) if is_2d else image[None]
    predict = _average_flips(network, len(window_size)) if section.flips else network
    num_windows = 0

    def count_and_predict(windows: Tensor) -> Tensor:
        nonlocal num_windows
        num_windows += len(windows)
        # MONAI multiplies what it is given in place and accumulates in its type.
        return predict(windows).float()

    with torch.inference_mode():
        logits = sliding_window_inference(
            batch,
            tuple(window_size),
            section.batch_size,
            count_and_predict,
            overlap=section.overlap,
            mode=section.blending,
        )
    assert isinstance(logits, Tensor)
    return Scores(logits.movedim(0, -1) if is_2d else logits[0], num_windows)


def _average_flips(network: Callable[[Tensor], Tensor], dims: int) -> Callable[[Tensor], Tensor]:
    flips = [axes for num in range(dims + 1) for axes in combinations(range(2, 2 + dims), num)]

    def predict(windows: Tensor) -> Tensor:
        total = network(windows).float()
        for axes in flips[1:]:
            total += network(windows.flip(axes)).flip(axes)
        return total / len(flips)

    return predict
