"""A volume with its geometry: valid once built, and the only form in which voxels cross rooms without torch.

Axis order is `(i, j, k)` as stored; the affine maps voxel indices to world coordinates in RAS millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

Affine = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an image lie in the patient: the only thing a mask has to share with its image.

    Attributes:
        shape: Number of voxels along the three stored axes.
        affine: 4x4 voxel → world, RAS millimetres.
        sform: The header's sform, or None if its code is 0.
        sform_code: NIfTI code of the sform.
        qform: The header's qform, or None if its code is 0.
        qform_code: NIfTI code of the qform.
        pixdim: The header's stored qfac and millimetres per voxel, or None if no NIfTI header gave them.
        quaternion: The header's stored quaternion (b, c, d), from which it computes the qform, or None. The
            matrix alone does not give its bits back.

    Raises:
        ValueError: If the shape is not three positive numbers, or the affine is not a finite invertible 4x4.
    """

    shape: tuple[int, int, int]
    affine: Affine
    sform: Affine | None = None
    sform_code: int = 1
    qform: Affine | None = None
    qform_code: int = 0
    pixdim: tuple[float, float, float, float] | None = None
    quaternion: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"a grid has three axes with at least one voxel each, not {self.shape}")
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError("an affine is a 4x4 matrix of finite numbers")
        if not np.array_equal(affine[3], (0, 0, 0, 1)) or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise ValueError("an affine is invertible and its last row is 0 0 0 1")
        object.__setattr__(self, "affine", affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres per voxel along the three stored axes."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def orientation(self) -> str:
        """Nearest anatomical direction of each stored axis, such as `RAS`."""
        return "".join(aff2axcodes(self.affine))

    def is_close(self, other: Grid, tolerance_mm: float = 1e-2) -> bool:
        """Whether both grids have the same shape and every corner lies within `tolerance_mm` of its twin."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], [1], indexing="ij")).reshape(4, -1)
        return bool(np.abs((self.affine - other.affine) @ corners).max() <= tolerance_mm)


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and the grid they lie on.

    Attributes:
        array: `(I, J, K)`, as stored (never reordered), of a real numeric type.
        grid: Its geometry.

    Raises:
        ValueError: If the array has another shape than the grid, or is not numeric.
    """

    array: NDArray[np.generic] = field(repr=False)
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise ValueError(f"the array has shape {self.array.shape}, its grid {self.grid.shape}")
        if self.array.dtype.kind not in "uifb":
            raise ValueError(f"a volume holds real numbers, not {self.array.dtype}")
