"""The noise of a CT scan at a part of its dose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from transforms.corruption.contract import draw_from, require_between, require_image

_WATER = 0.0193
"""Attenuation of water per mm at 70 keV, which is about the mean of a spectrum of 120 kV."""

_REFERENCE = 200.0 * _WATER
"""Line integral through the 20 cm of water to which noise figures refer."""

_SMALLEST_DOSE = 1e-4

_LARGEST_INTEGRAL = 40.0
"""Behind it no quantum arrives; its exponential squared is still a float32."""

_SLICES_AT_ONCE = 32
"""Bounds the memory for rays."""


@dataclass(frozen=True, slots=True)
class LowDose:
    """Quantum and electronic noise of a lower dose, inserted into projections and reconstructed.

    Of every slice (across the last axis) line integrals `q` of the attenuation `0.0193/mm · (1 + HU/1000)`
    are taken in parallel beams over half a turn. Behind `q` arrive `r = exp(q - q₂₀)` times fewer quanta
    than behind the `q₂₀` of 20 cm of water. The logarithm of Poisson counts with Gaussian electronic noise
    has, to first order, the variance `v (r + e r²)` at full dose and `v (r/a + e r²/a²)` at a dose of `a`;
    what the image does not have yet is

        v (r (1/a - 1) + e r² (1/a² - 1)).

    Gaussian noise of this variance is drawn for every ray, reconstructed by filtered back-projection with a
    Hann window, as a soft-tissue kernel is, and added to the image in HU. This is the noise insertion of Yu
    et al. (*Development and validation of a practical lower-dose-simulation tool for optimizing computed
    tomography scan protocols*, JCAT 2012), on projections computed from the image; a method of that kind
    met a scanner's noise within 4 % (*A practical method to simulate realistic reduced-exposure CT images*,
    Radiol Phys Technol 2024). Since only noise passes through the reconstruction, the image keeps its
    sharpness, and full dose is the image itself.

    Limits: beams are parallel and of one energy, slices independent of each other, the kernel is one of
    many; no bow-tie filter, tube current modulation or iterative reconstruction. A ray's deviation is held
    at 1, so that starved rays streak, but neither their bias nor the filters that scanners have against it
    are there. The patient beyond the image counts as air.

    Attributes:
        dose: Share of the image's own dose; 1 leaves the image as it is.
        full_dose_noise: Standard deviation in HU that the image's own dose would leave in the centre of
            20 cm of water on the image's grid; gives `v`.
        electronic: `e`, variance of electronic noise behind 20 cm of water as a share of that of the
            quanta, at full dose; 0.005 are 10 quanta of noise on 20,000.
    """

    dose: float
    full_dose_noise: float = 5.0
    electronic: float = 0.005

    def __post_init__(self) -> None:
        require_between(self.dose, _SMALLEST_DOSE, 1, "A dose, as a share of the full one,")
        require_between(self.full_dose_noise, 0, 1000, "The noise of a full dose, in HU,")
        require_between(self.electronic, 0, 1, "Electronic noise, as a share of that of the quanta,")

    def __call__(self, image: Tensor, spacing: Sequence[float], seed: int) -> Tensor:
        """See `Corruption`; the image is in HU, and its last axis of three runs across axial slices."""
        require_image(image, spacing)
        if self.dose == 1:
            return image.clone()
        generator = draw_from(seed)
        beam = ParallelBeam((image.shape[1], image.shape[2]), (spacing[0], spacing[1]))
        # Every pixel becomes a row with its value in all slices of all channels: (H W, C D).
        rows = image.reshape(*image.shape[:3], -1).permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
        parts = [
            part + self._make_noise(part, beam, generator) for part in rows.split(_SLICES_AT_ONCE, dim=1)
        ]
        noisy = torch.cat(parts, dim=1).reshape(image.shape[1], image.shape[2], image.shape[0], -1)
        return noisy.permute(2, 0, 1, 3).reshape(image.shape)

    def _make_noise(self, hounsfield: Tensor, beam: ParallelBeam, generator: Generator) -> Tensor:
        """`(H W, slices)` noise in HU that a lower dose adds to slices of that shape."""
        attenuation = (hounsfield / 1000 + 1).clamp_min(0) * _WATER
        variance = self._find_variance(beam.project(attenuation), beam)
        drawn = torch.randn(variance.shape, generator=generator).to(variance.device)
        return beam.reconstruct(variance.sqrt() * drawn) * (1000 / _WATER)

    def _find_variance(self, integrals: Tensor, beam: ParallelBeam) -> Tensor:
        """What is to be added to the variance of each ray."""
        fewer = (integrals.clamp_max(_LARGEST_INTEGRAL) - _REFERENCE).exp()
        wanted = (self.full_dose_noise * _WATER / 1000) ** 2
        of_a_ray = wanted / beam.noise_gain / (1 + self.electronic)
        quanta = fewer * (1 / self.dose - 1)
        electrons = self.electronic * fewer**2 * (1 / self.dose**2 - 1)
        return (of_a_ray * (quanta + electrons)).clamp_max(1)


class ParallelBeam:
    """Parallel rays through a slice: line integrals, and back from them by filtered back-projection.

    A pixel shares its value between the two rays beside its centre, in both directions. Rays are a pixel
    apart, along the longer of its sides: closer ones would miss pixels.

    Args:
        shape: `(H, W)` pixels.
        spacing: Millimetres between them.

    Attributes:
        noise_gain: Variance of a reconstructed pixel per variance of a ray, where all rays through it have
            the same.
    """

    def __init__(self, shape: tuple[int, int], spacing: tuple[float, float]) -> None:
        self._width = max(spacing)
        self._area = spacing[0] * spacing[1]
        self._places = [
            torch.arange(size, dtype=torch.float64).sub_((size - 1) / 2).mul_(side / self._width)
            for size, side in zip(shape, spacing, strict=True)
        ]
        reach = math.hypot(*(float(line[-1]) for line in self._places))
        self._num_rays = 2 * math.ceil(reach) + 3
        # As many views as a pixel at the rim has to be seen from.
        self._num_views = math.ceil(math.pi / 2 * self._num_rays)
        self._filter = self._build_filter()
        # Anywhere between two rays, linear interpolation keeps 2/3 of the variance and 1/3 of the covariance.
        correlation = torch.fft.irfft(self._filter**2)
        kept = float(2 * correlation[0] + correlation[1]) / 3
        self.noise_gain = math.pi**2 / self._num_views * kept

    def project(self, rows: Tensor) -> Tensor:
        """Line integrals `(views, rays, slices)` of `(H W, slices)` per mm."""
        rays = rows.new_zeros((self._num_views, self._num_rays, rows.shape[1]))
        scaled = rows * (self._area / self._width)
        for view, (lower, weight) in zip(rays, self._walk(rows), strict=True):
            upper_part = scaled * weight
            view.index_add_(0, lower, scaled - upper_part).index_add_(0, lower + 1, upper_part)
        return rays

    def reconstruct(self, rays: Tensor) -> Tensor:
        """`(H W, slices)` per mm from line integrals `(views, rays, slices)`."""
        length = 2 * (len(self._filter) - 1)
        spectrum = torch.fft.rfft(rays, n=length, dim=1) * self._filter.to(rays)[:, None]
        filtered = torch.fft.irfft(spectrum, n=length, dim=1)[:, : self._num_rays]
        rows = rays.new_zeros((len(self._places[0]) * len(self._places[1]), rays.shape[2]))
        for view, (lower, weight) in zip(filtered, self._walk(rays), strict=True):
            rows += torch.lerp(view.index_select(0, lower), view.index_select(0, lower + 1), weight)
        return rows.mul_(math.pi / self._num_views)

    def _walk(self, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For every view, the ray below each pixel's centre and how far beyond it that lies."""
        first, second = (line.to(like) for line in self._places)
        for angle in np.arange(self._num_views) * (math.pi / self._num_views):
            position = first[:, None] * math.cos(angle) + second * math.sin(angle) + (self._num_rays - 1) / 2
            position = position.flatten()
            lower = position.floor()
            yield lower.long(), (position - lower)[:, None]

    def _build_filter(self) -> Tensor:
        """The ramp, sampled in space (Kak and Slaney 1988, section 3.3), under a Hann window; for `rfft`."""
        half = 2 ** math.ceil(math.log2(self._num_rays))
        distance = torch.arange(-half, half, dtype=torch.float64).roll(half)
        ramp = torch.where(distance % 2 == 1, -1 / (math.pi * distance) ** 2, 0.0)
        ramp[0] = 1 / 4
        window = 0.5 + 0.5 * torch.cos(torch.linspace(0, math.pi, half + 1, dtype=torch.float64))
        gain: Tensor = torch.fft.rfft(ramp).real / self._width
        return gain * window
