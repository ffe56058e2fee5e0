"""Whole images at the size that a classifier sees, and the training batches drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor

from pipeline.config import ClassificationDataSection, ClassificationPreprocessingSection
from pipeline.data.batches import Batch, derive_seed, draw_ahead
from pipeline.data.cache import cached
from pipeline.data.case_images import content_hash, read_case_images
from pipeline.data.cases import Case
from pipeline.data.class_study import ClassStudy
from pipeline.data.prepared_cases import hash_files, prepare_all
from pipeline.data.regions import Regions
from pipeline.errors import Fault, InputError
from pipeline.volume import Affine, Volume
from transforms.classification import fit_to_size
from transforms.keys import CLASS, IMAGE
from transforms.preprocessing import Prepared, Preprocessing, preprocess
from transforms.region import crop_to_region, show_region

# Changes whenever the same files and settings would give other voxels than before.
_CACHE_VERSION = 1


@dataclass(frozen=True, eq=False)
class ClassImage:
    """An image at the size that the network sees.

    Attributes:
        case: Ids and paths.
        image: `(C, *size)` float32; two axes for a two-dimensional network.
        target: `(K,)` float32, 1 for each class that it is of, else 0.
        affine: 4x4, voxel of `image` → world, RAS millimetres.
        content_hash: SHA-256 over the files, or the row of a file, that it was read from; its label map, if
            that tells the region, is one of them.
    """

    case: Case
    image: Tensor
    target: Tensor
    affine: Affine
    content_hash: str


def prepare_class_images(
    cases: Sequence[Case],
    study: ClassStudy,
    section: ClassificationPreprocessingSection,
    data: ClassificationDataSection,
    regions: Regions | None = None,
    on_case: Callable[[], None] = lambda: None,
) -> list[ClassImage]:
    """Reads and prepares every case, and caches it if it has files of its own or a model was asked for it.

    Raises:
        InputError: With all faults of all cases.
        ResourceError: If the cache folder cannot be written or the disk is full.
    """
    return prepare_all(cases, lambda case: _prepare(case, study, section, data, regions), on_case)


def bring_to_size(
    case: Case,
    volumes: Sequence[Volume],
    section: ClassificationPreprocessingSection,
    regions: Regions | None = None,
) -> Prepared:
    """What the network sees of an image, `(C, H, W, D)`; with two axes, D is 1.

    Args:
        case: Whose image it is.
        volumes: One per channel, all on one grid.
        section: The chain's settings.
        regions: Tells where to look; None for the whole image.

    Raises:
        InputError: If it has several slices and the network takes one, or the region is not found.
    """
    affine = volumes[0].grid.affine
    region = None if regions is None else regions.find(case, volumes)
    shown = region if section.shows_region else None
    prepared = preprocess(class_chain(section), [volume.array for volume in volumes], affine, shown)
    if section.shows_region:
        prepared = show_region(prepared)
    if section.crops:
        assert region is not None, "the job says where it comes from"
        prepared = crop_to_region(prepared, region, affine, section.region_margin)
    try:
        return fit_to_size(prepared, section.size, section.fit)
    except ValueError as error:
        message = f"{error}; train a three-dimensional one (network.dimensions: 3)"
        raise InputError(Fault(case.id, "slice-axis", message)) from error


def class_chain(section: ClassificationPreprocessingSection) -> Preprocessing:
    """The chain's settings from the config."""
    return Preprocessing(section.orientation, section.spacing, section.normalisation, section.window)


class ClassSampler:
    """Draws the training images of any step, from nothing but the seed and the step's number.

    Args:
        images: Prepared training cases, never empty.
        source_size: Voxels per axis of what is handed out, the image in its middle and its edge carried on
            round it: augmentation turns it.
        batch_size: Samples per step.
        is_balanced: Whether every class is drawn equally often, instead of every case.
        seed: Of the run.
        share: Of the samples of a step, where several processes train; see `PatchSampler`.
    """

    def __init__(
        self,
        images: Sequence[ClassImage],
        source_size: Sequence[int],
        batch_size: int,
        *,
        is_balanced: bool,
        seed: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.images = images
        self.source_size = tuple(source_size)
        self.batch_size = batch_size
        self.seed = seed
        self.share = share
        targets = torch.stack([image.target for image in images])
        members = [column.nonzero().flatten().tolist() for column in targets.T] if is_balanced else []
        self._members = [own for own in members if own]
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """`(B, C, *source_size)` of the images of a batch."""
        return (self.batch_size, self.images[0].image.shape[0], *self.source_size)

    def draw(self, step: int) -> Batch:
        """The batch of training step `step`: `image` `(B, C, *source_size)` and `class` `(B, K)`."""
        rank, num_processes = self.share
        first = (step * num_processes + rank) * self.batch_size
        numbers = range(first, first + self.batch_size)
        drawn = [self.images[self._pick(number)] for number in numbers]
        return Batch(
            tensors={
                IMAGE: self._pad(torch.stack([image.image for image in drawn])),
                CLASS: torch.stack([image.target for image in drawn]),
            },
            seeds=tuple(derive_seed(self.seed, "sample", number) for number in numbers),
        )

    def iterate(self, first_step: int) -> Generator[Batch]:
        """Batches from `first_step` on, endlessly; the next one is drawn by a thread while one is in use."""
        yield from draw_ahead(self.draw, first_step)

    def _pick(self, number: int) -> int:
        if self._members:
            random = np.random.default_rng(derive_seed(self.seed, "class", number))
            own = self._members[random.integers(len(self._members))]
            return int(own[random.integers(len(own))])
        epoch, position = divmod(number, len(self.images))
        if self._order is None or self._order[0] != epoch:
            random = np.random.default_rng(derive_seed(self.seed, "order", epoch))
            self._order = epoch, random.permutation(len(self.images))
        return int(self._order[1][position])

    def _pad(self, images: Tensor) -> Tensor:
        sizes = zip(self.source_size, images.shape[2:], strict=True)
        margins = [((source - size) // 2, source - size - (source - size) // 2) for source, size in sizes]
        flat = [margin for pair in reversed(margins) for margin in pair]
        return F.pad(images, flat, mode="replicate") if any(flat) else images


def _prepare(
    case: Case,
    study: ClassStudy,
    section: ClassificationPreprocessingSection,
    data: ClassificationDataSection,
    regions: Regions | None,
) -> ClassImage:
    def build(volumes: Sequence[Volume]) -> dict[str, Tensor]:
        prepared = bring_to_size(case, volumes, section, regions)
        image = prepared.image if len(section.size) == 3 else prepared.image[..., 0]
        return {IMAGE: image.contiguous(), "affine": torch.from_numpy(prepared.affine)}

    def read() -> list[Volume]:
        return read_case_images(case, len(study.channels))

    if case.row is None:
        hashed = hash_files(case, *(regions.files(case) if regions is not None else ()))
        tensors = cached(data.cache_dir, _cache_key(hashed, section, regions), lambda: build(read()))
    else:
        volumes = read()
        hashed = content_hash(volumes).hex()
        if regions is not None:  # a model needs longer than a look into the cache
            tensors = cached(data.cache_dir, _cache_key(hashed, section, regions), lambda: build(volumes))
        else:  # thousands in one file, each prepared sooner than found again
            tensors = build(volumes)
    known = case.classes or ()
    target = torch.tensor([float(name in known) for name in study.classes])
    return ClassImage(case, tensors[IMAGE], target, tensors["affine"].numpy(), hashed)


def _cache_key(
    hashed: str, section: ClassificationPreprocessingSection, regions: Regions | None
) -> list[object]:
    key = ["class image", _CACHE_VERSION, hashed, asdict(class_chain(section)), section.size, section.fit]
    if regions is not None:
        key += [section.region, section.region_margin, regions.values, regions.model_hash]
    return key
