"""Random changes of training patches, a whole batch at a time on the device it is on.

What happens to a sample is drawn in one place, from that sample's own seed, and applied in another; so
the same seed gives the same patch whatever the batch, the worker or the order. Rotation and scaling share
one resampling, from a source patch large enough that no empty corner is turned in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Generator, Tensor

# Rotating and shrinking by the largest amounts at once would ask for a source of up to 8 times the voxels;
# beyond this factor per axis the rare corner is filled from the edge instead.
_LARGEST_MARGIN = 1.5


class Settings(Protocol):
    """What can be set; documented at the augmentation section of the config."""

    @property
    def rotation_probability(self) -> float: ...
    @property
    def rotation_degrees(self) -> float: ...
    @property
    def scaling_probability(self) -> float: ...
    @property
    def scaling_range(self) -> tuple[float, float]: ...
    @property
    def mirror_axes(self) -> tuple[int, ...]: ...
    @property
    def noise_probability(self) -> float: ...
    @property
    def noise_deviation(self) -> float: ...
    @property
    def blur_probability(self) -> float: ...
    @property
    def blur_sigma(self) -> tuple[float, float]: ...
    @property
    def brightness_probability(self) -> float: ...
    @property
    def brightness_range(self) -> tuple[float, float]: ...
    @property
    def contrast_probability(self) -> float: ...
    @property
    def contrast_range(self) -> tuple[float, float]: ...
    @property
    def gamma_probability(self) -> float: ...
    @property
    def gamma_range(self) -> tuple[float, float]: ...


@dataclass(frozen=True, slots=True)
class _Draw:
    """Everything that is random about one sample; None leaves a step out."""

    matrix: Tensor | None
    mirrored: tuple[int, ...]
    blur_sigma: float | None
    noise_deviation: float | None
    brightness: float | None
    contrast: float | None
    gamma: float | None


class Augmentation:
    """Turns source patches into augmented training patches.

    Args:
        settings: Probabilities and ranges.
        patch_size: Voxels per axis of what comes out, two or three axes.
        spacing: Millimetres per voxel along them, so that a rotation is one in the patient; None if unknown.

    Attributes:
        source_size: Voxels per axis of what has to come in.
    """

    def __init__(
        self, settings: Settings, patch_size: Sequence[int], spacing: Sequence[float] | None = None
    ) -> None:
        self.settings = settings
        self.patch_size = tuple(patch_size)
        self.spacing = tuple(spacing or (1.0,) * len(self.patch_size))[: len(self.patch_size)]
        self.source_size = self._find_source_size()

    def __call__(self, image: Tensor, label: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Augments a batch.

        Args:
            image: `(B, C, *source_size)` float32.
            label: `(B, *source_size)` integer label values or indices.
            seeds: One per sample.

        Returns:
            Image `(B, C, *patch_size)` and label `(B, *patch_size)`, of the same types.
        """
        draws = []
        noise = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            draws.append(self._draw(generator))
            noise.append(torch.Generator(device=image.device).manual_seed(seed))
        samples = [
            self._apply(image[index], label[index], draw, noise[index]) for index, draw in enumerate(draws)
        ]
        return torch.stack([s[0] for s in samples]), torch.stack([s[1] for s in samples])

    def _draw(self, generator: Generator) -> _Draw:
        s = self.settings

        def happens(probability: float) -> bool:
            return bool(torch.rand((), generator=generator) < probability)

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        rotates, scales = happens(s.rotation_probability), happens(s.scaling_probability)
        largest = math.radians(s.rotation_degrees) if rotates else 0.0
        angles = [uniform(-largest, largest) for _ in range(3 if len(self.patch_size) == 3 else 1)]
        zoom = math.exp(uniform(*map(math.log, s.scaling_range))) if scales else 1.0
        return _Draw(
            matrix=self._build_matrix(angles, zoom) if rotates or scales else None,
            mirrored=tuple(axis for axis in s.mirror_axes if happens(0.5)),
            blur_sigma=uniform(*s.blur_sigma) if happens(s.blur_probability) else None,
            noise_deviation=uniform(0, s.noise_deviation) if happens(s.noise_probability) else None,
            brightness=uniform(*s.brightness_range) if happens(s.brightness_probability) else None,
            contrast=uniform(*s.contrast_range) if happens(s.contrast_probability) else None,
            gamma=uniform(*s.gamma_range) if happens(s.gamma_probability) else None,
        )

    def _apply(self, image: Tensor, label: Tensor, draw: _Draw, noise: Generator) -> tuple[Tensor, Tensor]:
        if draw.matrix is None:
            image, label = self._crop(image), self._crop(label)
        else:
            image, label = self._resample(image, label, draw.matrix)
        if draw.mirrored:
            # Counted from the end: one expression then serves the image, with its channels, and the label.
            axes = [axis - len(self.patch_size) for axis in draw.mirrored]
            image, label = image.flip(axes), label.flip(axes)
        if draw.blur_sigma is not None:
            image = _blur(image, draw.blur_sigma)
        if draw.noise_deviation is not None:
            drawn = torch.randn(image.shape, generator=noise, device=image.device)
            image = image + draw.noise_deviation * drawn
        if draw.brightness is not None:
            image = image * draw.brightness
        if draw.contrast is not None:
            mean = _mean(image)
            image = (image - mean) * draw.contrast + mean
        if draw.gamma is not None:
            image = _apply_gamma(image, draw.gamma)
        return image, label

    def _find_source_size(self) -> tuple[int, ...]:
        s = self.settings
        angle = math.radians(min(s.rotation_degrees, 45.0)) if s.rotation_probability else 0.0
        zoom = min(1.0, *s.scaling_range) if s.scaling_probability else 1.0
        margin = min((math.cos(angle) + math.sin(angle)) / zoom, _LARGEST_MARGIN)
        # An even difference keeps both centres on one voxel, so that an unrotated patch is a plain crop.
        return tuple(n + 2 * math.ceil((margin - 1) * n / 2) for n in self.patch_size)

    def _crop(self, tensor: Tensor) -> Tensor:
        for axis, (size, source) in enumerate(zip(self.patch_size, self.source_size, strict=True)):
            tensor = tensor.narrow(axis - len(self.patch_size), (source - size) // 2, size)
        return tensor

    def _build_matrix(self, angles: Sequence[float], zoom: float) -> Tensor:
        """The 2x2 or 3x3 matrix from an offset in the patch to one in the source, in voxels."""
        dims = len(self.patch_size)
        matrix = torch.eye(dims, dtype=torch.float64)
        planes = [(0, 1), (0, 2), (1, 2)] if dims == 3 else [(0, 1)]
        for (a, b), angle in zip(planes, angles, strict=True):
            rotation = torch.eye(dims, dtype=torch.float64)
            rotation[a, a] = rotation[b, b] = math.cos(angle)
            rotation[a, b], rotation[b, a] = -math.sin(angle), math.sin(angle)
            matrix = rotation @ matrix
        spacing = torch.tensor(self.spacing, dtype=torch.float64)
        return matrix * spacing[None, :] / spacing[:, None] / zoom

    def _resample(self, image: Tensor, label: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
        size = torch.tensor(self.patch_size, dtype=torch.float64)
        source = torch.tensor(self.source_size, dtype=torch.float64)
        # `affine_grid` speaks of halves of the image and names the last axis first.
        theta = (matrix * size[None, :] / source[:, None]).flip(0, 1)
        theta = torch.cat([theta, torch.zeros(len(size), 1, dtype=torch.float64)], dim=1)[None]
        grid = F.affine_grid(theta.to(image), [1, 1, *self.patch_size], align_corners=False)
        moved = F.grid_sample(image[None], grid, "bilinear", "border", align_corners=False)[0]
        # Label indices are small, so float32 carries them exactly.
        stored = label[None, None].to(image.dtype)
        nearest = F.grid_sample(stored, grid, "nearest", "border", align_corners=False)[0, 0]
        return moved, nearest.to(label.dtype)


def _mean(image: Tensor) -> Tensor:
    return image.mean(dim=list(range(1, image.ndim)), keepdim=True)


def _blur(image: Tensor, sigma: float) -> Tensor:
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(1, image.ndim):
        lines = image.movedim(axis, -1)
        flat = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (radius, radius), mode="replicate")
        image = F.conv1d(flat, kernel[None, None]).reshape(lines.shape).movedim(-1, axis)
    return image


def _apply_gamma(image: Tensor, gamma: float) -> Tensor:
    axes = list(range(1, image.ndim))
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    changed = ((image - low) / (high - low).clamp_min(1e-8)).pow(gamma)
    mean, deviation = _mean(image), image.std(axes, keepdim=True)
    return (changed - _mean(changed)) / changed.std(axes, keepdim=True).clamp_min(1e-8) * deviation + mean
