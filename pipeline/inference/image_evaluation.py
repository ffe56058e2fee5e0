"""Images of a case against the true ones: on the truth's own grid, which is never resampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.data.truths import turned_fault
from pipeline.errors import Fault, InputError
from pipeline.image_metrics import data_range, psnr, ssim
from pipeline.inference.grids import on_grid
from pipeline.volume import Grid, Volume
from transforms.resampling import Slices, are_parallel, match_axes

_VOXEL_TOLERANCE = 1e-3


def compare_images(
    case: str, truths: Sequence[Volume], candidates: Mapping[str, Sequence[Volume]]
) -> dict[str, float]:
    """PSNR and SSIM of images of one case against the true ones, the mean over channels.

    Images on another grid are brought linearly to that of the truth. All are compared where all of them
    reach: between the centres of their outermost voxels.

    Args:
        case: Its id.
        truths: One volume per channel, on one grid.
        candidates: Images by name, each one volume per channel on one grid.

    Returns:
        `psnr_<name>` and `ssim_<name>` of each; PSNR is infinite where all voxels are equal.

    Raises:
        InputError: If an image cannot be brought to the truth's grid without turning it, does not overlap it,
            or the truth is constant.
    """
    grid = truths[0].grid
    place = common_place(case, grid, [volumes[0].grid for volumes in candidates.values()])
    figures: dict[str, float] = {}
    for name, volumes in candidates.items():
        found = []
        for truth, volume in zip(truths, volumes, strict=True):
            true = truth.array[place]
            peak = data_range(true)
            if not peak > 0:
                message = "all of the truth's voxels are equal, so nothing is judged by it; check the file"
                raise InputError(Fault(case, "truth-constant", message))
            values = on_grid(volume, grid)[place]
            found.append((psnr(values, true, peak), ssim(values, true, peak)))
        figures[f"psnr_{name}"], figures[f"ssim_{name}"] = map(float, np.mean(found, axis=0))
    return figures


def common_place(case: str, grid: Grid, others: Sequence[Grid]) -> Slices:
    """Where on the grid of a truth all others reach: between the centres of their outermost voxels.

    Args:
        case: Its id.
        grid: The truth's.
        others: Those of what is compared with it.

    Raises:
        InputError: If one is turned against the truth's, or does not overlap it.
    """
    inside = [np.ones(size, dtype=bool) for size in grid.shape]
    for other in others:
        if not are_parallel(other.affine, grid.affine):
            raise InputError(turned_fault(case))
        if other.is_close(grid):
            continue
        axes, positions = match_axes(other.affine, grid.shape, grid.affine)
        for k, (axis, position) in enumerate(zip(axes, positions, strict=True)):
            last = other.shape[axis] - 1
            inside[k] &= (position > -_VOXEL_TOLERANCE) & (position < last + _VOXEL_TOLERANCE)
    if not all(part.any() for part in inside):
        message = "the truth lies elsewhere than the image; is it that of this case?"
        raise InputError(Fault(case, "truth-grid", message))
    ends = [np.flatnonzero(part)[[0, -1]] for part in inside]
    height, width, depth = (slice(int(first), int(last) + 1) for first, last in ends)
    return height, width, depth
