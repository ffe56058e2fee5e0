"""Source patches in, augmented training patches out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from transforms.augmentation import intensity
from transforms.augmentation.drawing import ChannelDraw, Draw, draw_sample
from transforms.augmentation.settings import Settings
from transforms.augmentation.spatial import place, resample
from transforms.laterality import Laterality

# Rotating and shrinking by the largest amounts at once would ask for a source of up to 8 times the voxels;
# beyond this factor per axis the rare corner is filled from the edge instead.
_LARGEST_MARGIN = 1.5


class Augmentation:
    """Turns source patches into augmented training patches.

    Args:
        settings: Probabilities and ranges.
        patch_size: Voxels per axis of what comes out, two or three axes.
        spacing: Millimetres per voxel along them, so that a rotation is one in the patient; None if unknown,
            which `settings.in_plane` does not allow.
        laterality: Labels that change places when left and right do; None if none has a side.

    Attributes:
        source_size: Voxels per axis of what has to come in.
    """

    def __init__(
        self,
        settings: Settings,
        patch_size: Sequence[int],
        spacing: Sequence[float] | None = None,
        laterality: Laterality | None = None,
    ) -> None:
        self.settings = settings
        self.patch_size = tuple(patch_size)
        assert spacing is not None or not settings.in_plane
        known = tuple(spacing or (1.0,) * len(self.patch_size))[: len(self.patch_size)]
        self._still = known.index(max(known)) if settings.in_plane else None
        self._axes = tuple(axis for axis in range(len(self.patch_size)) if axis != self._still)
        self._spacing = tuple(known[axis] for axis in self._axes)
        self._laterality = laterality
        self.source_size = self._find_source_size()

    def __call__(self, image: Tensor, label: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Augments a batch; what becomes of a sample depends on nothing but its seed.

        Args:
            image: `(B, C, *source_size)` float32.
            label: `(B, *source_size)` integer label values or indices.
            seeds: One per sample.

        Returns:
            Image `(B, C, *patch_size)` and label `(B, *patch_size)`, of the same types.
        """
        return self.apply(image, label, self.draw(seeds, image.shape[1]))

    def draw(self, seeds: Sequence[int], num_channels: int) -> list[Draw]:
        """What is to happen to each sample."""
        deformed = tuple(self.patch_size[axis] for axis in self._axes)
        return [draw_sample(seed, self.settings, deformed, num_channels) for seed in seeds]

    def exchanges_sides(self, drawn: Draw) -> bool:
        """Whether labels of the left become those of the right."""
        return self._laterality is not None and self._laterality.axis in drawn.mirrored

    def apply(self, image: Tensor, label: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """Does to each sample of a batch what was drawn for it; see `__call__`."""
        new_image = image.new_empty(*image.shape[:2], *self.patch_size)
        new_label = label.new_empty(len(label), *self.patch_size)
        for number, drawn in enumerate(draws):
            sample = new_image[number], new_label[number]
            self._move(image[number], label[number], drawn, sample)
            self._change_intensities(sample[0], drawn)
        return new_image, new_label

    def _move(self, image: Tensor, label: Tensor, drawn: Draw, into: tuple[Tensor, Tensor]) -> None:
        if drawn.is_resampled:
            if self._still is not None and self._still in drawn.mirrored:
                # Nothing else happens along it.
                from_end = self._still - len(self.patch_size)
                image, label = image.flip(from_end), label.flip(from_end)
            sides, sources = (
                [sizes[axis] for axis in self._axes] for sizes in (self.patch_size, label.shape)
            )
            mirrored = [number for number, axis in enumerate(self._axes) if axis in drawn.mirrored]
            positions = place(drawn, mirrored, sides, sources, self._spacing)
            resample(image, label, positions.to(image.device), self._still, into)
        else:
            # Counted from the end: one expression then serves the image, with its channels, and the label.
            flipped = [axis - len(self.patch_size) for axis in drawn.mirrored]
            for source, target in zip((image, label), into, strict=True):
                cropped = self._crop(source)
                target.copy_(cropped.flip(flipped) if flipped else cropped)
        if self._laterality is not None and self.exchanges_sides(drawn):
            _exchange(into[1], self._laterality.partners)

    def _change_intensities(self, image: Tensor, drawn: Draw) -> None:
        for channel, change in zip(image, drawn.channels, strict=True):
            if change.blur_sigma is not None:
                intensity.blur(channel, change.blur_sigma)
        if drawn.noise_deviation is not None:
            generator = torch.Generator(device=image.device).manual_seed(drawn.noise_seed)
            intensity.add_noise(image, drawn.noise_deviation, generator)
        for channel, change in zip(image, drawn.channels, strict=True):
            self._change_channel(channel, change)

    def _change_channel(self, channel: Tensor, change: ChannelDraw) -> None:
        if change.brightness is not None:
            channel.mul_(change.brightness)
        if change.contrast is not None:
            intensity.change_contrast(channel, change.contrast)
        if change.low_resolution is not None:
            intensity.lower_resolution(channel, change.low_resolution, self._still)
        if change.inverted_gamma is not None:
            intensity.apply_inverted_gamma(channel, change.inverted_gamma)
        if change.gamma is not None:
            intensity.apply_gamma(channel, change.gamma)

    def _find_source_size(self) -> tuple[int, ...]:
        s = self.settings
        angle = math.radians(min(s.rotation_degrees, 45.0)) if s.rotation_probability else 0.0
        zoom = min(1.0, *s.scaling_range) if s.scaling_probability else 1.0
        bent = 2 * s.elastic_displacement * s.elastic_distance[1] if s.elastic_probability else 0.0
        margin = min((1 + bent) * (math.cos(angle) + math.sin(angle)) / zoom, _LARGEST_MARGIN)
        # An even difference keeps both centres on one voxel, so that an unrotated patch is a plain crop.
        return tuple(
            n if axis == self._still else n + 2 * math.ceil((margin - 1) * n / 2)
            for axis, n in enumerate(self.patch_size)
        )

    def _crop(self, tensor: Tensor) -> Tensor:
        for axis, (size, source) in enumerate(zip(self.patch_size, self.source_size, strict=True)):
            tensor = tensor.narrow(axis - len(self.patch_size), (source - size) // 2, size)
        return tensor


def _exchange(label: Tensor, partners: Sequence[int]) -> None:
    """Puts each label's partner in its place; values beyond those are left."""
    before = label.clone()
    for value, partner in enumerate(partners):
        if partner != value:
            label.masked_fill_(before == value, partner)
