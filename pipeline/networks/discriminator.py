"""The discriminator: how much every patch of an image looks like those of a set, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from pipeline.config.generators import GeneratorSection
from pipeline.networks.blocks import CONVOLUTION, NORM, Axes, initialise

_KERNEL: Final = 4
_SLOPE: Final = 0.2
_MAX_WIDENING: Final = 8


class Discriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, arXiv:1611.07004) for slices and volumes.

    Strided convolutions, one that is not, and one that judges. Every number of its output sees a patch of the
    image, `receptive_field` wide; patches overlap. Instance norm follows all convolutions but the first and
    the last, or all are bounded by spectral norm (Miyato et al. 2018, arXiv:1802.05957).

    With spectral norm a pass in training mode takes a step towards each layer's largest singular value. That
    writes two buffers, which are part of the state: what resumes from it goes on with the same bits.

    Args:
        section: The shape of the network.
        channels: Of an image, without neighbours.
    """

    def __init__(self, section: GeneratorSection, channels: int) -> None:
        super().__init__()
        levels, dimensions = section.discriminator_levels, section.dimensions
        self._strides = (*(2,) * levels, 1, 1)
        self._dimensions, self._smallest = dimensions, section.smallest_judged
        self._range = section.judged_range

        widths = [
            section.discriminator_features * min(2**level, _MAX_WIDENING) for level in range(levels + 1)
        ]
        has_norm, convolution = not section.spectral_norm, CONVOLUTION[dimensions]
        layers: list[nn.Module] = []
        for level, (width, stride) in enumerate(
            zip(pairwise((channels, *widths)), self._strides, strict=False)
        ):
            is_normalised = has_norm and level > 0  # a norm would subtract the bias
            layers.append(convolution(*width, _KERNEL, stride, padding=1, bias=not is_normalised))
            if is_normalised:
                layers.append(NORM[dimensions](width[1], affine=True))
            layers.append(nn.LeakyReLU(_SLOPE, inplace=True))
        layers.append(convolution(widths[-1], 1, _KERNEL, padding=1))
        self.layers = nn.Sequential(*layers)

        self.apply(initialise)
        if section.spectral_norm:  # once the weights are drawn, which it looks at
            for layer in self.layers:
                if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
                    spectral_norm(layer)

    def forward(self, image: Tensor) -> Tensor:
        """How real each patch looks, not activated.

        Args:
            image: (B, channels, …).

        Returns:
            (B, 1, …), one number per patch.

        Raises:
            ValueError: If the image has a size that `check_size` refuses.
        """
        self.check_size(image.shape[2:])
        judgement: Tensor = self.layers(image if self._range is None else image.clamp(*self._range))
        return judgement

    def check_size(self, size: Sequence[int]) -> None:
        """Refuses what is too small for the strides.

        Args:
            size: Voxels per axis of an image.

        Raises:
            ValueError: If it has another number of axes than the network, or too few voxels along one.
        """
        if len(size) != self._dimensions:
            raise ValueError(
                f"this discriminator judges images of {self._dimensions} axes, not {tuple(size)}"
            )
        if min(size) < self._smallest:
            raise ValueError(
                f"a discriminator with {len(self._strides) - 2} strided levels needs {self._smallest} voxels "
                f"along every axis, and the image has {tuple(size)}; take fewer "
                "`network.discriminator_levels`, or a larger `training.patch_size`"
            )

    @property
    def receptive_field(self) -> Axes:
        """Voxels per axis of the patch that one number judges; instance norm, which sees all, is left out."""
        field = 1
        for stride in reversed(self._strides):
            field = (field - 1) * stride + _KERNEL
        return (field,) * self._dimensions
