"""What a config has to know of MONAI's segmentation networks: their names, and the sizes they take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

MonaiNetwork = Literal[
    "monai_unet", "monai_attention_unet", "monai_basic_unet", "monai_dynunet", "monai_segresnet"
]
_STRIDED: Final = ("monai_unet", "monai_attention_unet", "monai_dynunet")
_SEGRESNET_LEVELS: Final = 4


def monai_stride(name: str, arguments: Mapping[str, Any], dimensions: int) -> tuple[int, ...]:
    """Voxels of an image per voxel of the coarsest grid, per axis; 1 where the network fills up odd sizes.

    Args:
        name: One of `MonaiNetwork`.
        arguments: What it is built with.
        dimensions: 2 or 3.

    Raises:
        ValueError: If the arguments that decide it are missing or are no such numbers.
    """
    if name in _STRIDED:
        strides = arguments.get("strides")
        if not isinstance(strides, list | tuple) or not strides:
            raise ValueError("arguments.strides: a list with the stride of each level is needed")
        levels = [stride if isinstance(stride, list | tuple) else [stride] * dimensions for stride in strides]
        if any(len(level) != dimensions or not all(map(_is_count, level)) for level in levels):
            raise ValueError(f"arguments.strides: each needs a positive number, or {dimensions} of them")
        return tuple(math.prod(along) for along in zip(*levels, strict=True))
    if name == "monai_segresnet":
        blocks = arguments.get("blocks_down", (1,) * _SEGRESNET_LEVELS)
        if not isinstance(blocks, list | tuple) or not 1 <= len(blocks) <= 16:
            raise ValueError("arguments.blocks_down: a list with the blocks of each level is needed")
        return (2 ** (len(blocks) - 1),) * dimensions
    return (1,) * dimensions


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1024
