"""What images should look like: whether a truth shows all of its image, and the same on its grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.errors import Fault
from pipeline.volume import Affine, Grid, Volume
from transforms.enhancement import Scale
from transforms.preprocessing import Preprocessing, preprocess
from transforms.resampling import are_parallel, match_axes, resample

# Headers store rounded numbers.
_VOXEL_TOLERANCE = 0.05


def truth_fault(case: str, truth: Grid, image: Grid, network: Affine | None = None) -> Fault | None:
    """Why an image cannot be held against a truth voxel by voxel; None if it can.

    Every voxel of the image has its centre within the box of the truth's voxels: nothing would say what is
    true beyond it.

    Args:
        case: Its id.
        truth: The grid of the truth.
        image: That of the image, as it is stored.
        network: 4x4 voxel → world of the image on the network's grid, where it is known: against other voxels
            the same small angle may be too large.
    """
    if not all(are_parallel(truth.affine, own) for own in (image.affine, network) if own is not None):
        return turned_fault(case)
    axes, positions = match_axes(truth.affine, image.shape, image.affine)
    beyond = [
        max(-0.5 - float(place.min()), float(place.max()) - (truth.shape[axis] - 0.5))
        for axis, place in zip(axes, positions, strict=True)
    ]
    if max(beyond) <= _VOXEL_TOLERANCE:
        return None
    missing = max(voxels * truth.spacing[axis] for axis, voxels in zip(axes, beyond, strict=True))
    message = (
        f"the image reaches {missing:.3g} mm beyond its truth, where nothing says how it should look; crop "
        "it to what the truth shows, or give it another truth"
    )
    return Fault(case, "truth-grid", message)


def turned_fault(case: str) -> Fault:
    """The fault of a truth on a grid that is turned against its image's."""
    message = "the truth's axes are turned against the image's; resample it to the image's grid"
    return Fault(case, "truth-grid", message)


def bring_truth(
    volumes: Sequence[Volume], orientation: str, image: Tensor, affine: Affine, scales: Sequence[Scale]
) -> Tensor:
    """A truth on the network's grid of its image, scaled as the image is.

    The network's grid may end up to half a voxel beyond the image's own; the truth's last voxel counts there,
    as the image's does.

    Args:
        volumes: The truth, one volume per channel.
        orientation: Of the network's grid.
        image: `(C, H, W, D)` on it.
        affine: 4x4, voxel of `image` → world, RAS millimetres.
        scales: Of each channel of the image.

    Returns:
        `(C, H, W, D)` float32.
    """
    own = Preprocessing(orientation, normalisation="none")
    prepared = preprocess(own, [volume.array for volume in volumes], volumes[0].grid.affine)
    height, width, depth = image.shape[1:]
    channels = [
        resample(channel, prepared.affine, (height, width, depth), affine) for channel in prepared.image
    ]
    scaled = [
        (channel - scale.mean) / scale.deviation for channel, scale in zip(channels, scales, strict=True)
    ]
    return torch.stack(scaled)
