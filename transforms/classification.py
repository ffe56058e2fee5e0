"""A whole image as a classifier sees it: everything of it, at one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Resize, ResizeWithPadOrCrop

from transforms.preprocessing import Prepared


def fit_to_size(prepared: Prepared, size: Sequence[int], fit: Literal["resize", "crop"]) -> Prepared:
    """Brings an image to `size` voxels; the affine goes with it.

    Args:
        prepared: On the network's grid, `(C, H, W, D)`.
        size: Voxels per axis; with two axes, of an image of one slice.
        fit: `resize` resamples the whole image linearly, smoothed first where it shrinks; `crop` cuts out its
            middle, padded with 0 where the image is smaller.

    Raises:
        ValueError: If two axes are asked of an image with several slices.
    """
    target = tuple(size) if len(size) == 3 else (*size, 1)
    shape = tuple(prepared.image.shape[1:])
    if len(size) == 2 and shape[2] != 1:
        raise ValueError(f"a two-dimensional classifier sees images of one slice, this one has {shape[2]}")
    if shape == target:
        return prepared
    resize = Resize(target, mode="trilinear", anti_aliasing=True)
    change = resize if fit == "resize" else ResizeWithPadOrCrop(target)
    with torch.no_grad():
        result = change(MetaTensor(prepared.image, affine=torch.from_numpy(prepared.affine)))
    assert isinstance(result, MetaTensor)
    return Prepared(result.as_tensor().contiguous(), np.asarray(result.affine, dtype=np.float64))
