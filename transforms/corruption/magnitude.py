"""What an MR scanner's receiver does to a magnitude image: noise, and uneven sensitivity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.polynomial import legendre
from torch import Tensor

from transforms.corruption.contract import draw_from, require, require_image, require_magnitude

_ROBUST = 0.005, 0.995
_DEGREE = 3


@dataclass(frozen=True, slots=True)
class RicianNoise:
    """The magnitude of a complex signal with Gaussian noise in both parts.

    `m = √((x + σ ε₁)² + (σ ε₂)²)`, with `ε` independent standard normal per voxel (Gudbjartsson and Patz,
    *The Rician distribution of noisy MRI data*, MRM 1995). `σ = R · 10^(-psnr/20)`, `R` the robust range of
    the channel: the distance between its 0.5 and 99.5 percentiles.

    Where the signal is well above `σ` the noise is Gaussian, and the error has the stated PSNR against `R`;
    where there is none, `m` has the mean `σ √(π/2)` and the mean square `2σ²`, so that air brings the PSNR
    down, by 3 dB at most.

    Own code, because MONAI's `RandRicianNoise` measures `σ` in deviations of the whole image, which depend on
    how much air it holds.

    Attributes:
        psnr: Peak signal-to-noise ratio in dB; infinity leaves the image as it is.
    """

    psnr: float

    def __post_init__(self) -> None:
        require(self.psnr > 0, f"The PSNR of Rician noise has to be above 0 dB; it is {self.psnr:g}.")

    def __call__(self, image: Tensor, spacing: Sequence[float], seed: int) -> Tensor:
        """See `Corruption`; the image must not be negative."""
        require_image(image, spacing)
        require_magnitude(image, "Rician noise")
        sigma = self.find_sigma(image).reshape(-1, *(1 for _ in spacing))
        real, imaginary = torch.randn((2, *image.shape), generator=draw_from(seed)).to(image.device)
        return torch.hypot(image + sigma * real, sigma * imaginary)

    def find_sigma(self, image: Tensor) -> Tensor:
        """`(C,)` standard deviation of the noise in each part, in the image's unit."""
        values = image.flatten(1)
        low, high = (values.kthvalue(1 + round(q * (values.shape[1] - 1)), dim=1).values for q in _ROBUST)
        return (high - low) * 10 ** (-self.psnr / 20)


@dataclass(frozen=True, slots=True)
class BiasField:
    """A smooth field that multiplies the image, the same for all channels.

    `y = x · exp(p)`, `p` a polynomial of total degree 3 in the coordinates of the image's box, from -1 to 1,
    its coefficients in products of Legendre polynomials drawn from a standard normal distribution, then
    shifted to mean 0 and scaled to `max |p| = ln(1 + amplitude)` within the ellipsoid that touches the
    sides of the box. In the corners beyond, where a polynomial is largest and a patient is not, `p` is held
    within this bound. So the field lies between `1 / (1 + amplitude)` and `1 + amplitude` and reaches one
    of them. The model is that of Van Leemput et al. (*Automated model-based bias field correction of MR
    images of the brain*, IEEE TMI 1999), used for augmentation by Sudre et al. (*Longitudinal segmentation
    of age-related white matter hyperintensities*, MedIA 2017).

    Own code, because MONAI's `RandBiasField` bounds coefficients, not the field, takes none that are
    negative and multiplies by a constant as well.

    Attributes:
        amplitude: Largest gain over 1, or loss under it, as a share; 0 leaves the image as it is.
    """

    amplitude: float

    def __post_init__(self) -> None:
        require(
            0 <= self.amplitude < math.inf,
            f"The amplitude of a bias field has to be 0 or more and finite; it is {self.amplitude:g}.",
        )

    def __call__(self, image: Tensor, spacing: Sequence[float], seed: int) -> Tensor:
        """See `Corruption`."""
        require_image(image, spacing)
        return image * self.draw_field(image.shape[1:], seed).to(image.device)

    def draw_field(self, shape: Sequence[int], seed: int) -> Tensor:
        """What an image of this shape is multiplied by; float32 on the CPU."""
        drawn = torch.randn((_DEGREE + 1,) * len(shape), generator=draw_from(seed), dtype=torch.float64)
        logarithm = drawn * (_add_up([torch.arange(_DEGREE + 1)] * len(shape)) <= _DEGREE)
        lines = [(2 * torch.arange(size, dtype=torch.float64) + 1) / size - 1 for size in shape]
        for line in lines:
            basis = torch.from_numpy(legendre.legvander(line.numpy(), _DEGREE))
            # Takes the foremost axis of coefficients away and adds one of voxels at the end.
            logarithm = torch.tensordot(logarithm, basis, dims=([0], [1]))
        ellipsoid = _add_up([line**2 for line in lines]) <= 1
        logarithm -= logarithm[ellipsoid].mean()
        # Of a single voxel nothing is left to scale.
        largest = logarithm[ellipsoid].abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        return logarithm.div_(largest).clamp_(-1, 1).mul_(math.log1p(self.amplitude)).exp_().float()


def _add_up(lines: Sequence[Tensor]) -> Tensor:
    """The sum of one function per axis, on the grid."""
    return torch.stack(torch.meshgrid(*lines, indexing="ij")).sum(dim=0)
