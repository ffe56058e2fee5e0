"""A volume with its geometry: valid once built, and the only form in which voxels cross rooms without torch.

Axis order is `(i, j, k)` as stored; the affine maps voxel indices to world coordinates in RAS millimetres.
`check_grid` is the door of every file: nothing is read from or written to a grid that does not pass it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from nibabel.orientations import aff2axcodes, axcodes2ornt, io_orientation
from numpy.typing import NDArray

from pipeline.errors import Fault, InputError

Affine = NDArray[np.float64]

MIN_SPACING_MM, MAX_SPACING_MM = 0.01, 100.0
MAX_ANISOTROPY = 100.0
MAX_SIDE = 32767
"""Voxels along an axis that NIfTI-1 can say, in which results are written."""
MAX_COSINE = 1e-3
"""Largest cosine between two voxel axes; a right angle to within 0.06 degrees."""

FORM_TOLERANCE_MM = 1e-2
"""How far a header's form may place a corner from where the affine does that was made of it."""

ROUNDING_TOLERANCE_MM, ROUNDING_TOLERANCE_VOXELS = 0.05, 0.2
"""How far apart the corners of two volumes of one case may lie: headers store rounded numbers."""


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

    def shape_along(self, orientation: str) -> tuple[int, int, int]:
        """Voxels along the axes of an orientation such as `RAS`, each the stored one nearest to it."""
        stored = io_orientation(self.affine)[:, 0].tolist()
        i, j, k = (self.shape[stored.index(axis)] for axis in axcodes2ornt(orientation)[:, 0])
        return i, j, k

    def spacing_along(self, orientation: str) -> tuple[float, float, float]:
        """Millimetres from voxel to voxel along the axes of an orientation, as `shape_along` has them."""
        stored = io_orientation(self.affine)[:, 0].tolist()
        i, j, k = (self.spacing[stored.index(axis)] for axis in axcodes2ornt(orientation)[:, 0])
        return i, j, k

    def is_close(self, other: Grid, tolerance_mm: float = 1e-2) -> bool:
        """Whether both grids have the same shape and every corner lies within `tolerance_mm` of its twin."""
        if self.shape != other.shape:
            return False
        return corner_distance(self.affine, other.affine, self.shape) <= tolerance_mm

    def is_close_but_for_rounding(self, other: Grid) -> bool:
        """Whether both are the grid of one case, told apart by rounded numbers in headers alone."""
        return self.is_close(other, self.rounding_tolerance_mm)

    @property
    def rounding_tolerance_mm(self) -> float:
        """How far a corner may lie from its twin's in another volume of the same case."""
        return min(ROUNDING_TOLERANCE_MM, ROUNDING_TOLERANCE_VOXELS * min(self.spacing))


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


def check_grid(where: str, grid: Grid) -> None:
    """Lets a grid through on which something can be measured, predicted and written in place.

    Raises:
        InputError: With what is wrong with its affine, or if the header form in force places it elsewhere, or
            an axis is too long.
    """
    sizes = size_faults(where, grid.shape)
    if faults := [*sizes, *affine_faults(where, grid.affine), *_form_faults(where, grid)]:
        raise InputError(faults)


def size_faults(where: str, shape: Sequence[int]) -> list[Fault]:
    """Faults of a shape whose results no file could hold."""
    if max(shape) <= MAX_SIDE:
        return []
    told = " x ".join(map(str, shape))
    message = (
        f"{told} voxels; the files of results hold at most {MAX_SIDE} along an axis, crop or resample it"
    )
    return [Fault(where, "too-large", message)]


def _form_faults(where: str, grid: Grid) -> Iterator[Fault]:
    """Faults of the form that readers go by: the sform if it has a code, else the qform."""
    name, form = ("sform", grid.sform) if grid.sform_code else ("qform", grid.qform)
    if not (grid.sform_code or grid.qform_code) or form is None:
        return
    distance = corner_distance(form, grid.affine, grid.shape)
    if not distance <= FORM_TOLERANCE_MM:
        message = f"the {name} cannot express its affine: its corners lie {distance:.3g} mm apart"
        yield Fault(where, "form-contradicts-affine", message)


def affine_faults(where: str, affine: Affine) -> list[Fault]:
    """Faults of a 4x4 voxel → world affine: not finite, singular, spacing out of range, axes not orthogonal.

    Only the first kind is reported, since the later ones follow from it.
    """
    if not np.isfinite(affine).all():
        return [Fault(where, "affine-not-finite", "the affine holds NaN or infinity; write a valid one")]
    axes = affine[:3, :3]
    with np.errstate(all="ignore"):  # absurd numbers overflow, and are refused below
        spacing = np.linalg.norm(axes, axis=0)
        determinant = np.linalg.det(axes / spacing)
    if not abs(determinant) > 1e-6:  # also when it is NaN
        message = "the affine is singular: its voxel axes do not span space; write a valid sform or qform"
        return [Fault(where, "affine-singular", message)]
    told = " x ".join(f"{mm:.4g}" for mm in spacing)
    if spacing.min() < MIN_SPACING_MM or spacing.max() > MAX_SPACING_MM:
        message = (
            f"voxels measure {told} mm, outside {MIN_SPACING_MM} to {MAX_SPACING_MM:g} mm; "
            "check the unit and the header"
        )
        return [Fault(where, "spacing-range", message)]
    if spacing.max() / spacing.min() > MAX_ANISOTROPY:
        message = f"voxels measure {told} mm, more than {MAX_ANISOTROPY:g} to 1; check the header"
        return [Fault(where, "anisotropy", message)]
    cosines = (axes / spacing).T @ (axes / spacing) - np.eye(3)
    if np.abs(cosines).max() > MAX_COSINE:
        angle = np.degrees(np.arccos(np.clip(np.abs(cosines).max(), 0, 1)))
        message = (
            f"the voxel axes meet at {angle:.2f} degrees, not at right angles (shear or gantry tilt); "
            "resample the image to an orthogonal grid first"
        )
        return [Fault(where, "shear", message)]
    return []


def corner_distance(one: Affine, other: Affine, shape: tuple[int, int, int]) -> float:
    """Largest distance in mm between the centres of the same corner voxel under two affines."""
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in shape))]).T
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())


def without_geometry(array: NDArray[np.generic]) -> Volume:
    """A volume of voxels of which nothing is known but their order: axes as stored, 1 mm apart from 0.

    Args:
        array: `(I, J)`, which becomes `(I, J, 1)`, or `(I, J, K)`.
    """
    voxels = array[..., None] if array.ndim == 2 else array
    i, j, k = voxels.shape
    return Volume(voxels, Grid((i, j, k), np.eye(4), sform=np.eye(4)))


def measure_volumes(
    array: NDArray[np.unsignedinteger], grid: Grid, structures: Mapping[str, tuple[int, ...]]
) -> dict[str, float]:
    """Millilitres of each structure of a label map, to a thousandth of a cubic millimetre.

    Args:
        array: `(I, J, K)` label values on `grid`.
        grid: Tells how large a voxel is.
        structures: The label values that each unites.
    """
    largest = max((value for values in structures.values() for value in values), default=0)
    counts = np.zeros(max(np.iinfo(array.dtype).max, largest) + 1, dtype=np.int64)
    for k in range(array.shape[2]):  # bincount widens to 64 bits: one slice at a time
        counts += np.bincount(array[:, :, k].ravel(order="K"), minlength=len(counts))
    return {
        name: round(float(counts[list(values)].sum()) * grid.voxel_ml, 6)
        for name, values in structures.items()
    }
