"""Batches of training steps: functions of the step's number, the next one drawn while one is in use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Source patches for one training step, still to be augmented.

    Attributes:
        tensors: `image` `(B, C, *source_size)` float32 and `label` `(B, *source_size)` label indices.
        seeds: One per sample, for its augmentation.
        labelled: The structures that are labelled in each sample, None standing for all of them; empty if all
            are in every sample.
    """

    tensors: dict[str, Tensor]
    seeds: tuple[int, ...]
    labelled: tuple[tuple[str, ...] | None, ...] = ()


def draw_ahead(draw: Callable[[int], Batch], first_step: int) -> Generator[Batch]:
    """What `draw` gives for each step from the first on, endlessly; a thread draws the next meanwhile.

    Args:
        draw: Makes the batch of a step, from nothing but the step's number.
        first_step: Of the batches, from 0.
    """
    # Threads of its own for each operation would keep those of the network from their cores.
    with ThreadPoolExecutor(max_workers=1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        upcoming = pool.submit(draw, first_step)
        step = first_step
        while True:
            batch = upcoming.result()
            step += 1
            upcoming = pool.submit(draw, step)
            yield batch


def derive_seed(*parts: object) -> int:
    """A seed of 64 bits that is a function of `parts` and of nothing else."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8])
