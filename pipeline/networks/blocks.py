"""Blocks of convolutional networks in 2D and 3D: two convolutions, with or without a shortcut, and the gate.

Kernels and strides have one number per spatial axis; their length says whether a block is 2D or 3D.
Everything here has a deterministic backward pass on a GPU, which torch's own linear interpolation has not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

Axes = tuple[int, ...]

NEGATIVE_SLOPE: Final = 0.01

_ByDimensions = dict[int, Callable[..., nn.Module]]
CONVOLUTION: Final[_ByDimensions] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: Final[_ByDimensions] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM: Final[_ByDimensions] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
DROPOUT: Final[_ByDimensions] = {2: nn.Dropout2d, 3: nn.Dropout3d}


class Pointwise(nn.Module):
    """A convolution of kernel 1 as one matrix product.

    For the few channels of a head, torch's convolution takes ten to twenty times as long on a CPU.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, …) → (B, out_channels, …)."""
        weight = self.weight.expand(image.shape[0], -1, -1)
        product = torch.baddbmm(self.bias[:, None], weight, image.flatten(2))
        return product.view(image.shape[0], -1, *image.shape[2:])


class PlainBlock(nn.Sequential):
    """Twice convolution, instance norm, leaky ReLU; the first convolution takes the stride.

    Dropout drops whole channels between the two convolutions.
    """

    def __init__(self, in_channels: int, features: int, kernel: Axes, stride: Axes, dropout: float) -> None:
        super().__init__(*_two_convolutions(in_channels, features, kernel, stride, dropout), _activation())


class ResidualBlock(nn.Module):
    """The plain block with its input added before the last leaky ReLU (He et al. 2016, arXiv:1512.03385).

    Where channels or grid change, the input is projected by a normalised convolution whose kernel is the
    stride, so that no voxel is passed over as by a strided 1x1.
    """

    def __init__(self, in_channels: int, features: int, kernel: Axes, stride: Axes, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(*_two_convolutions(in_channels, features, kernel, stride, dropout))
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != features or max(stride) > 1:
            projection = CONVOLUTION[len(stride)](in_channels, features, stride, stride, bias=False)
            self.shortcut = nn.Sequential(projection, _norm(features, len(stride)))
        self.activation = _activation()

    def forward(self, image: Tensor) -> Tensor:
        """(B, in_channels, …) → (B, features, …), each axis divided by its stride."""
        output: Tensor = self.activation(self.body(image) + self.shortcut(image))
        return output


BLOCKS: Final[dict[str, type[PlainBlock | ResidualBlock]]] = {"plain": PlainBlock, "residual": ResidualBlock}


class AttentionGate(nn.Module):
    """Additive attention on a skip connection (Oktay et al. 2018, arXiv:1804.03999, equations 1 and 2).

    The skip is brought to the coarser grid of the gating signal, where both are added and reduced to one
    coefficient per voxel; the coefficients are then resampled linearly to the grid of the skip.
    `docs/attention-unet.md` tells what differs from the paper.
    """

    def __init__(self, skip_channels: int, gating_channels: int, stride: Axes) -> None:
        super().__init__()
        hidden = max(1, skip_channels // 2)
        self.stride = stride
        self.from_skip = CONVOLUTION[len(stride)](skip_channels, hidden, stride, stride, bias=False)
        self.from_gating = Pointwise(gating_channels, hidden)
        self.activation = _activation()
        self.score = Pointwise(hidden, 1)

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        """Attention coefficients in [0, 1].

        Args:
            skip: (B, skip_channels, …), features on the fine grid.
            gating: (B, gating_channels, …), features on the grid coarser by `stride`.

        Returns:
            (B, 1, …) on the grid of `skip`.
        """
        score = self.score(self.activation(self.from_skip(skip) + self.from_gating(gating)))
        return upsample_linear(torch.sigmoid(score), self.stride)


def upsample_linear(image: Tensor, factors: Axes) -> Tensor:
    """Linear resampling of (B, C, …) by whole factors, voxel centres at half coordinates, edges repeated.

    Equals `interpolate(mode="trilinear", align_corners=False)`, whose backward pass torch cannot make
    deterministic on a GPU.
    """
    for axis, factor in enumerate(factors, start=2):
        if factor > 1:
            image = _upsample_axis(image, axis, factor)
    return image


def check_size(image: Tensor, total_stride: Axes) -> None:
    """Refuses an image that a network with an encoder and a decoder cannot see.

    Args:
        image: (B, C, …).
        total_stride: Voxels of the finest grid per voxel of the coarsest, per axis.

    Raises:
        ValueError: If it has another rank, a size that is no multiple of `total_stride`, or so few voxels
            that the coarsest grid has only one.
    """
    size = tuple(image.shape[2:])
    if len(size) != len(total_stride):
        raise ValueError(
            f"this network takes (batch, channel) and {len(total_stride)} spatial axes, not "
            f"{tuple(image.shape)}"
        )
    if any(n < 1 or n % t for n, t in zip(size, total_stride, strict=True)):
        raise ValueError(
            f"every axis must be a multiple of the total stride {total_stride}; the image has {size}"
        )
    if size == total_stride:
        raise ValueError(
            f"an image of {size} leaves a single voxel on the coarsest grid (total stride {total_stride}), "
            "which instance norm turns to zero; take a larger patch, or fewer levels"
        )


def initialise(module: nn.Module) -> None:
    """Draws convolution weights for leaky ReLUs (He et al. 2015, arXiv:1502.01852) and zeroes the biases.

    Use as `network.apply(initialise)`. A transposed convolution whose kernel is its stride sums over its
    input channels only, while torch would count its output channels times the kernel.
    """
    if isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d)):
        gain = nn.init.calculate_gain("leaky_relu", NEGATIVE_SLOPE)
        nn.init.normal_(module.weight, std=gain / math.sqrt(module.in_channels))
    elif isinstance(module, (nn.Conv2d, nn.Conv3d, Pointwise)):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _two_convolutions(
    in_channels: int, features: int, kernel: Axes, stride: Axes, dropout: float
) -> list[nn.Module]:
    dimensions = len(kernel)
    convolution, padding = CONVOLUTION[dimensions], tuple(k // 2 for k in kernel)
    # The norms subtract any constant, so the convolutions before them need no bias. Dropout stands there
    # even if it drops nothing, at no cost, so that weights keep their names when it is turned on.
    return [
        convolution(in_channels, features, kernel, stride, padding, bias=False),
        _norm(features, dimensions),
        _activation(),
        DROPOUT[dimensions](dropout),
        convolution(features, features, kernel, 1, padding, bias=False),
        _norm(features, dimensions),
    ]


def _norm(features: int, dimensions: int) -> nn.Module:
    return NORM[dimensions](features, affine=True)


def _activation() -> nn.Module:
    return nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)


def _upsample_axis(image: Tensor, axis: int, factor: int) -> Tensor:
    size = image.shape[axis]
    before = torch.cat((image.narrow(axis, 0, 1), image.narrow(axis, 0, size - 1)), axis)
    after = torch.cat((image.narrow(axis, 1, size - 1), image.narrow(axis, size - 1, 1)), axis)
    shifts = [(phase + 0.5) / factor - 0.5 for phase in range(factor)]
    phases = [torch.lerp(image, after if shift > 0 else before, abs(shift)) for shift in shifts]
    return torch.stack(phases, axis + 1).flatten(axis, axis + 1)
