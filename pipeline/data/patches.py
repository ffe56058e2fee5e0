"""Training patches of prepared cases: any step's are functions of the seed and the step's number."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batches import Batch, derive_seed, draw_ahead
from pipeline.data.chunks import Voxels
from pipeline.data.prepared_cases import PreparedCase
from transforms.cropping import crop
from transforms.keys import IMAGE, LABEL


class PatchSampler:
    """Draws the training patches of any step, from nothing but the seed and the step's number.

    Args:
        cases: Prepared training cases, never empty.
        patch_size: Voxels per axis of a training patch; with two axes, slices along the last array axis.
        source_size: Voxels per axis of what is cut, the patch in its middle: augmentation turns it.
        batch_size: Samples per step.
        foreground_fraction: Share of patches centred on a random voxel of a random label.
        seed: Of the run.
        twin_probability: Of drawing from a case's twin, where it has one.
        share: Of the samples of a step, where several processes train: which one this is, of how many. Each
            draws `batch_size` samples, and together they draw those of one with the sum.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        patch_size: Sequence[int],
        source_size: Sequence[int],
        batch_size: int,
        foreground_fraction: float,
        seed: int,
        twin_probability: float = 0.0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.cases = cases
        slab = (1,) if len(patch_size) == 2 else ()
        self.patch_size = (*patch_size, *slab)
        self.source_size = (*source_size, *slab)
        self.is_2d = bool(slab)
        self.batch_size = batch_size
        self.foreground_fraction = foreground_fraction
        self.seed = seed
        self.twin_probability = twin_probability
        self.share = share

    @property
    def shape(self) -> tuple[int, ...]:
        """`(B, C, *source_size)` of the images of a batch."""
        size = self.source_size[:2] if self.is_2d else self.source_size
        return (self.batch_size, self.cases[0].image.shape[0], *size)

    def draw(self, step: int) -> Batch:
        """The batch of training step `step`."""
        rank, num_processes = self.share
        first = (step * num_processes + rank) * self.batch_size
        samples = [self._draw_sample(number) for number in range(first, first + self.batch_size)]
        return Batch(
            tensors={
                IMAGE: torch.stack([image for image, *_ in samples]),
                LABEL: torch.stack([label for _, label, *_ in samples]),
            },
            seeds=tuple(seed for _, _, seed, _ in samples),
            labelled=tuple(labelled for *_, labelled in samples),
        )

    def iterate(self, first_step: int) -> Generator[Batch]:
        """Batches from `first_step` on, endlessly; the next one is drawn by a thread while one is in use."""
        yield from draw_ahead(self.draw, first_step)

    def _draw_sample(self, number: int) -> tuple[Tensor, Tensor, int, tuple[str, ...] | None]:
        epoch, position = divmod(number, len(self.cases))
        order = np.random.default_rng(derive_seed(self.seed, "order", epoch)).permutation(len(self.cases))
        prepared = self.cases[order[position]]
        random = np.random.default_rng(derive_seed(self.seed, "patch", number))
        centre = self._draw_centre(prepared, random)
        start = [c - s // 2 for c, s in zip(centre, self.source_size, strict=True)]
        image = crop(self._draw_image(prepared, number), start, self.source_size)
        label = crop(prepared.label, start, self.source_size)[0]
        if self.is_2d:
            image, label = image[..., 0], label[..., 0]
        return image, label, int(random.integers(2**62)), prepared.labelled

    def _draw_image(self, prepared: PreparedCase, number: int) -> Voxels:
        if prepared.twin is None:
            return prepared.image
        # Numbers of its own, so that places and augmentation are those of a training without twins.
        random = np.random.default_rng(derive_seed(self.seed, "twin", number))
        return prepared.twin if random.random() < self.twin_probability else prepared.image

    def _draw_centre(self, prepared: PreparedCase, random: np.random.Generator) -> list[int]:
        shape = prepared.label.shape[1:]
        if prepared.coordinates and random.random() < self.foreground_fraction:
            present = sorted(prepared.coordinates)
            voxels = prepared.coordinates[present[random.integers(len(present))]]
            centre = voxels[int(random.integers(len(voxels)))].tolist()
        else:
            centre = [int(random.integers(n)) for n in shape]
        # A patch stays inside the volume where the volume is larger, and is centred on it where it is not.
        return [
            min(max(c, s // 2), n - s + s // 2) if n > s else n // 2
            for c, s, n in zip(centre, self.patch_size, shape, strict=True)
        ]
