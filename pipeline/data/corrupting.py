"""Good images of a case made worse: the same in every training and on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
import torch
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from pipeline.config import CorruptionSection
from pipeline.data.batches import derive_seed
from pipeline.errors import Fault, InputError
from pipeline.volume import Grid, Volume
from transforms import corruption as corruptions


def corrupt(volumes: Sequence[Volume], section: CorruptionSection, case: str) -> list[Volume]:
    """Makes the channels of a case worse; what is drawn depends on the case's id and the kind alone.

    Slices are those across the axis nearest to feet-head, however the image is stored.

    Args:
        volumes: One per channel, on one grid.
        section: What happens, and how badly.
        case: Its id.

    Returns:
        float32 in the unit of the images, in their axis order; the grid changes with thick slices alone.

    Raises:
        InputError: If the image cannot be made worse so.
    """
    grid = volumes[0].grid
    to_ras = io_orientation(grid.affine)
    back = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), to_ras)
    stored = [np.asarray(volume.array, dtype=np.float32) for volume in volumes]
    image = torch.from_numpy(np.stack([np.ascontiguousarray(apply_orientation(a, to_ras)) for a in stored]))
    affine = grid.affine @ inv_ornt_aff(to_ras, grid.shape)
    kind = corruptions.CORRUPTIONS[section.name][section.severity - 1]
    try:
        worse, worse_affine = corruptions.corrupt(kind, image, affine, derive_seed("corruption", case))
    except ValueError as error:
        raise InputError(Fault(case, "corruption", f"{section.name}: {error}")) from error
    arrays = [np.asarray(apply_orientation(channel.numpy(), back)) for channel in worse]
    if worse.shape == image.shape:
        return [Volume(array, grid) for array in arrays]
    height, width, depth = worse.shape[1:]
    own = worse_affine @ inv_ornt_aff(back, (height, width, depth))
    placed = Grid(arrays[0].shape, own, sform=own)
    return [Volume(array, placed) for array in arrays]
