"""Images to be enhanced and what they should look like, on the network's grid, and patches of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.config import CorruptionSection, EnhancementJob
from pipeline.data.batches import Batch, derive_seed, draw_ahead
from pipeline.data.cache import cached
from pipeline.data.case_images import read_case_images
from pipeline.data.cases import Case
from pipeline.data.corrupting import corrupt
from pipeline.data.prepared_cases import hash_files, prepare_all
from pipeline.data.truths import bring_truth, truth_fault
from pipeline.errors import InputError
from pipeline.volume import Affine
from transforms.cropping import crop
from transforms.enhancement import Scale, prepare_image, stack_neighbours
from transforms.keys import IMAGE, SOURCE, TARGET
from transforms.preprocessing import Preprocessing

# Changes whenever the same files and settings would give other voxels than before.
_CACHE_VERSION = 3
_TRUTH = "truth"


@dataclass(frozen=True, eq=False)
class EnhancementImage:
    """An image on the network's grid.

    Attributes:
        case: Ids and paths.
        image: `(C, H, W, D)` float32, scaled.
        truth: What it should look like, on the same grid and scaled by the same numbers; None if unknown, or
            if it cannot be held against the whole image.
        scales: Of each channel.
        affine: 4x4, voxel of `image` → world, RAS millimetres.
        slice_mm: Millimetres from slice to slice of what was read, along the last axis of `image`.
        made_scales: Of each channel of what is made of it; None if they are its own.
    """

    case: Case
    image: Tensor
    truth: Tensor | None
    scales: tuple[Scale, ...]
    affine: Affine
    slice_mm: float
    made_scales: tuple[Scale, ...] | None = None

    @cached_property
    def can_judge(self) -> bool:
        """Whether the truth is known and not constant: what is all one value judges nothing."""
        return self.truth is not None and all(bool(channel.min() < channel.max()) for channel in self.truth)


def prepare_chain(job: EnhancementJob) -> Preprocessing:
    """The chain's settings from the config."""
    section = job.preprocessing
    return Preprocessing(section.orientation, section.spacing, section.normalisation, section.window)


def prepare_enhancement_images(
    cases: Sequence[tuple[Case, Case | None]],
    num_channels: int,
    job: EnhancementJob,
    corruption: CorruptionSection | None = None,
    on_case: Callable[[], None] = lambda: None,
) -> list[EnhancementImage]:
    """Reads, prepares and caches images.

    A supervised training learns from truths: one that does not show all of its image is a fault. Else it
    would only judge, and counts as unknown.

    Args:
        cases: Each with the case that shows its truth, if there is one.
        num_channels: Of every image.
        job: How to prepare them.
        corruption: What makes them worse first; their truth is not touched.
        on_case: Called after each.

    Raises:
        InputError: With all faults of all cases.
        ResourceError: If the cache folder cannot be written or the disk is full.
    """
    truths = dict(cases)

    def prepare(case: Case) -> EnhancementImage:
        return _prepare(case, truths[case], num_channels, job, corruption)

    return prepare_all(list(truths), prepare, on_case)


class PairSampler:
    """Draws a patch of a source and a patch of a target for every sample of any step.

    Unpaired, they are of different cases, places and directions. Everything drawn is a function of the seed
    and the step's number.

    Args:
        sources: Prepared training cases, never empty.
        targets: As well; ignored if `is_paired`.
        patch_size: Voxels per axis; with two axes, slices along the last array axis.
        neighbours: Slices on either side that a slice brings with it as channels.
        mirror_axes: Along which patches are flipped at random.
        batch_size: Samples per step.
        seed: Of the run.
        is_paired: Whether the target is the source's truth in the same place.
    """

    def __init__(
        self,
        sources: Sequence[EnhancementImage],
        targets: Sequence[EnhancementImage],
        patch_size: Sequence[int],
        *,
        neighbours: int,
        mirror_axes: Sequence[int],
        batch_size: int,
        seed: int,
        is_paired: bool,
    ) -> None:
        self.sources = sources
        self.targets = targets
        self.is_2d = len(patch_size) == 2
        self.patch_size = (*patch_size, 1) if self.is_2d else tuple(patch_size)
        self.neighbours = neighbours
        self.mirror_axes = mirror_axes
        self.batch_size = batch_size
        self.seed = seed
        self.is_paired = is_paired

    @property
    def shape(self) -> tuple[int, ...]:
        """`(B, C, *patch_size)` of the sources of a batch, neighbours counted as channels."""
        num_channels = (2 * self.neighbours + 1) * self.sources[0].image.shape[0]
        return (self.batch_size, num_channels, *(self.patch_size[:2] if self.is_2d else self.patch_size))

    def draw(self, step: int) -> Batch:
        """The batch of training step `step`: `source` and `target`, both `(B, C, *patch_size)`."""
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
        samples = [self._draw_sample(number) for number in numbers]
        sources, targets = zip(*samples, strict=True)
        return Batch(
            tensors={SOURCE: torch.stack(sources), TARGET: torch.stack(targets)},
            seeds=tuple(derive_seed(self.seed, "sample", number) for number in numbers),
        )

    def iterate(self, first_step: int) -> Generator[Batch]:
        """Batches from `first_step` on, endlessly; the next one is drawn by a thread while one is in use."""
        yield from draw_ahead(self.draw, first_step)

    def _draw_sample(self, number: int) -> tuple[Tensor, Tensor]:
        source = self._pick(self.sources, number, SOURCE)
        random = np.random.default_rng(derive_seed(self.seed, "patch", SOURCE, number))
        if not self.is_paired:
            other = np.random.default_rng(derive_seed(self.seed, "patch", TARGET, number))
            target = self._pick(self.targets, number, TARGET)
            return self._cut([source.image], random)[0], self._cut([target.image], other)[0]
        assert source.truth is not None, "every source of a paired training has its truth"
        image, truth = self._cut([source.image, source.truth], random)
        if self.neighbours:  # the truth of the slice alone
            num = truth.shape[0] // (2 * self.neighbours + 1)
            truth = truth[self.neighbours * num : (self.neighbours + 1) * num]
        return image, truth

    def _pick(self, images: Sequence[EnhancementImage], number: int, kind: str) -> EnhancementImage:
        epoch, position = divmod(number, len(images))
        random = np.random.default_rng(derive_seed(self.seed, "order", kind, epoch))
        return images[int(random.permutation(len(images))[position])]

    def _cut(self, volumes: Sequence[Tensor], random: np.random.Generator) -> list[Tensor]:
        """The same patch of volumes on one grid, mirrored at random."""
        shape = volumes[0].shape[1:]
        # A patch stays inside the volume where the volume is larger, and is centred on it where it is not.
        starts = [
            int(random.integers(n - s + 1)) if n > s else -((s - n) // 2)
            for n, s in zip(shape, self.patch_size, strict=True)
        ]
        flipped = [axis + 1 for axis in self.mirror_axes if random.random() < 0.5]
        return [self._mirror(self._take(volume, starts), flipped) for volume in volumes]

    def _take(self, volume: Tensor, starts: Sequence[int]) -> Tensor:
        if not self.is_2d:
            return crop(volume, starts, self.patch_size)
        slices = torch.arange(starts[2] - self.neighbours, starts[2] + self.neighbours + 1)
        slab = volume[..., slices.clamp(0, volume.shape[-1] - 1)]
        patch = crop(slab, (*starts[:2], 0), (*self.patch_size[:2], slab.shape[-1]))
        return stack_neighbours(patch, self.neighbours)[..., self.neighbours]

    def _mirror(self, patch: Tensor, axes: Sequence[int]) -> Tensor:
        return patch.flip(tuple(axes)) if axes else patch


def _prepare(
    case: Case,
    truth: Case | None,
    num_channels: int,
    job: EnhancementJob,
    corruption: CorruptionSection | None,
) -> EnhancementImage:
    chain = prepare_chain(job)
    needs_truth = truth is not None and job.training.method == "supervised"

    def build() -> dict[str, Tensor]:
        return _prepare_tensors(case, truth, num_channels, chain, corruption, needs_truth=needs_truth)

    hashed = [hash_files(each) for each in (case, truth) if each is not None]
    damage = None if corruption is None else [corruption.model_dump(), case.id]
    key = ["enhancement image", _CACHE_VERSION, hashed, asdict(chain), damage, truth is not None, needs_truth]
    tensors = cached(job.data.cache_dir, key, build)
    scales = tuple(Scale(*map(float, scale)) for scale in tensors["scales"])
    affine, slice_mm = tensors["affine"].numpy(), float(tensors["slice_mm"])
    return EnhancementImage(case, tensors[IMAGE], tensors.get(_TRUTH), scales, affine, slice_mm)


def _prepare_tensors(
    case: Case,
    truth: Case | None,
    num_channels: int,
    chain: Preprocessing,
    corruption: CorruptionSection | None,
    *,
    needs_truth: bool,
) -> dict[str, Tensor]:
    good = read_case_images(case, num_channels)
    volumes = good if corruption is None else corrupt(good, corruption, case.id)
    scaled = prepare_image(chain, [volume.array for volume in volumes], volumes[0].grid.affine)
    tensors = {
        IMAGE: scaled.image,
        "affine": torch.from_numpy(scaled.affine),
        "slice_mm": torch.tensor(volumes[0].grid.spacing_along(chain.orientation)[-1]).double(),
        "scales": torch.tensor([[scale.mean, scale.deviation] for scale in scaled.scales]).double(),
    }
    if truth is not None:
        shown = good if truth is case else read_case_images(truth, num_channels)
        fault = truth_fault(case.id, shown[0].grid, volumes[0].grid, scaled.affine)
        if fault is not None and needs_truth:
            raise InputError(fault)
        if fault is None:
            tensors[_TRUTH] = bring_truth(
                shown, chain.orientation, scaled.image, scaled.affine, scaled.scales
            )
    return tensors
