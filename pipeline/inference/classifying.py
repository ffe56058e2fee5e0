"""Logits of whole images, in batches and over mirrored copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.inference.window_runner import mirrorings
from pipeline.memory import is_out_of_memory


def compute_logits(
    network: Callable[[Tensor], Tensor],
    images: Sequence[Tensor],
    batch_size: int,
    device: torch.device,
    flipped_axes: Sequence[int] = (),
) -> Tensor:
    """The mean of the logits of all copies of each image that are mirrored along some of the axes.

    Args:
        network: `(B, C, *size)` → `(B, K)`, in evaluation mode.
        images: `(C, *size)` each.
        batch_size: Copies per forward pass; halved whenever memory does not suffice.
        device: Where the network is.
        flipped_axes: Array axes; without any, only the images themselves are seen.

    Returns:
        `(N, K)` float32 on the CPU.

    Raises:
        torch.OutOfMemoryError: If not even one image fits.
    """
    flips = mirrorings(flipped_axes)
    copies = [(image, flip) for image in images for flip in flips]
    logits: list[Tensor] = []
    while len(logits) < len(copies):
        some = copies[len(logits) : len(logits) + batch_size]
        try:
            with torch.inference_mode():
                batch = torch.stack([image.flip(flip) if flip else image for image, flip in some])
                logits += network(batch.to(device)).float().cpu()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(some) == 1:
                raise torch.OutOfMemoryError("not even one image fits") from error
            batch_size = len(some) // 2
    means: Tensor = torch.stack(logits).unflatten(0, (len(images), len(flips))).mean(1)
    return means
