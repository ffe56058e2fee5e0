"""What a NIfTI header says, judged before a voxel is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from pipeline.errors import Fault, InputError
from pipeline.volume import Affine, Grid, affine_faults, corner_distance, size_faults

FORM_TOLERANCE_MM = 0.1
"""How far apart sform and qform may place a corner of the image before a warning is given."""

PIXDIM_TOLERANCE = 0.01
"""How far pixdim may differ from the sform's spacing, relative to it, before a warning is given."""

_MAX_VOXELS = 2**31
_MAX_OFFSET = 2**26  # header extensions of 64 MiB: far above anything seen
_VERSIONS = {348: (nib.Nifti1Header, b"n+1"), 540: (nib.Nifti2Header, b"n+2")}
_DATATYPES = {
    **{256: "i1", 4: "i2", 8: "i4", 1024: "i8"},
    **{2: "u1", 512: "u2", 768: "u4", 1280: "u8"},
    **{16: "f4", 64: "f8"},
}
_UNITS = {1: "metres", 3: "micrometres"}
_UNKNOWN_UNIT, _MILLIMETRE = 0, 2


@dataclass(frozen=True)
class Layout:
    """How the voxels lie in the file, and in the patient.

    Attributes:
        grid: Geometry of every frame.
        num_frames: Three-dimensional images that follow each other.
        dtype: Stored type, in stored byte order.
        offset: Byte at which the voxels begin.
        scale: Slope and intercept that turn stored into meant values, or None.
        warnings: What is accepted but deserves a look.
    """

    grid: Grid
    num_frames: int
    dtype: np.dtype[Any]
    offset: int
    scale: tuple[float, float] | None
    warnings: tuple[Fault, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all voxels."""
        i, j, k = self.grid.shape
        return i * j * k * self.num_frames * self.dtype.itemsize


def read_layout(where: str, stream: IO[bytes]) -> Layout:
    """Reads and judges the header at the start of `stream`, of either version and byte order.

    Raises:
        EOFError: If the stream ends within the header.
        InputError: With all faults of the header.
    """
    header, magic = _read_header(where, stream)
    faults = [*_format_faults(where, header, magic), *_geometry_faults(where, header)]
    if faults:
        raise InputError(faults)
    ndim = int(header["dim"][0])
    i, j, k, num_frames, *_ = [*(int(n) for n in header["dim"][1 : ndim + 1]), 1, 1]
    grid, warnings = _grid(where, header, (i, j, k))
    return Layout(
        grid=grid,
        num_frames=num_frames,
        dtype=np.dtype(_DATATYPES[int(header["datatype"])]).newbyteorder(header.endianness),
        offset=int(header["vox_offset"]),
        scale=_scale(header),
        warnings=warnings,
    )


def _read_header(where: str, stream: IO[bytes]) -> tuple[nib.Nifti1Header, bytes]:
    """The header, unjudged, and the magic that a single file of its version carries."""
    start = stream.read(4)
    for size, (header_class, magic) in _VERSIONS.items():
        if size in (int.from_bytes(start, "little"), int.from_bytes(start, "big")):
            block = start + stream.read(size - 4)
            if len(block) < size:
                raise EOFError
            header = header_class(block, check=False)  # type: ignore[no-untyped-call]  # nibabel has no types
            if header["pixdim"][0] not in (-1, 1):
                header["pixdim"][0] = 1  # as the NIfTI standard reads the 0 that many writers leave there
            return header, magic
    if len(start) < 4:
        raise EOFError
    message = "the file does not begin with a NIfTI header; convert it with a tool that knows its format"
    raise InputError(Fault(where, "not-nifti", message))


def _format_faults(where: str, header: nib.Nifti1Header, magic: bytes) -> Iterator[Fault]:
    """Faults of everything in the header but the geometry."""
    if bytes(header["magic"].item())[:3] != magic:
        message = "the header is not that of a single NIfTI file; join a .hdr/.img pair into one .nii"
        yield Fault(where, "not-nifti", message)
    yield from _dimension_faults(where, header)
    code, bits = int(header["datatype"]), int(header["bitpix"])
    if code not in _DATATYPES:
        message = f"voxels of NIfTI datatype {code} are not supported; save them as integers or real numbers"
        yield Fault(where, "datatype", message)
    elif bits != np.dtype(_DATATYPES[code]).itemsize * 8:
        message = f"bitpix says {bits} bits per voxel, which contradicts datatype {code}; save the file again"
        yield Fault(where, "datatype", message)
    offset, least = float(header["vox_offset"]), header.template_dtype.itemsize + 4
    if not (least <= offset <= _MAX_OFFSET and offset.is_integer()):
        message = f"the voxels should begin at byte {least} or soon after it, vox_offset says {offset:g}"
        yield Fault(where, "voxel-offset", message)
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isinf(slope) or (np.isfinite(slope) and slope != 0 and not np.isfinite(inter)):
        message = f"scl_slope {slope:g} and scl_inter {inter:g} cannot scale voxels; set them to 1 and 0"
        yield Fault(where, "scaling", message)
    unit = int(header["xyzt_units"]) & 7
    if unit not in (_UNKNOWN_UNIT, _MILLIMETRE):
        message = (
            f"lengths are in {_UNITS.get(unit, f'an unknown unit (code {unit})')}, not millimetres; "
            "convert affine and pixdim, and set xyzt_units to mm"
        )
        yield Fault(where, "units", message)


def _dimension_faults(where: str, header: nib.Nifti1Header) -> Iterator[Fault]:
    ndim = int(header["dim"][0])
    dims = [int(n) for n in header["dim"][1 : max(ndim, 0) + 1]]
    told = " x ".join(map(str, dims))
    if not 2 <= ndim <= 7 or min(dims) < 1 or max(dims[4:], default=1) > 1:
        message = f"an image has 2 or 3 axes, or 4 of which the last holds channels; dim says {ndim}: {told}"
        yield Fault(where, "dimensions", message)
    elif (num_voxels := int(np.prod(dims, dtype=object))) > _MAX_VOXELS:
        message = (
            f"the header claims {told} = {num_voxels:.3g} voxels, {_MAX_VOXELS:.3g} are the most accepted; "
            "crop the image, or mend its header"
        )
        yield Fault(where, "too-large", message)
    else:
        yield from size_faults(where, dims[:3])


def _geometry_faults(where: str, header: nib.Nifti1Header) -> list[Fault]:
    with np.errstate(invalid="ignore"):  # of a signalling NaN, which a damaged header may hold
        pixdim = np.asarray(header["pixdim"], dtype=np.float64)
    spatial = pixdim[1 : 1 + min(max(int(header["dim"][0]), 1), 3)]
    if not (np.isfinite(spatial).all() and (spatial > 0).all()):
        told = " x ".join(f"{mm:g}" for mm in spatial)
        return [Fault(where, "pixdim", f"voxel sizes must be positive, pixdim says {told}; mend the header")]
    try:
        with np.errstate(all="ignore"):  # what overflows is refused below
            affine = header.get_best_affine()
            qform = header.get_qform(coded=True)[0]
    except (ValueError, HeaderDataError):
        return [Fault(where, "qform", "the qform's quaternion is not a rotation; write a valid qform")]
    if qform is not None and not np.isfinite(qform).all():
        return [Fault(where, "qform", "the qform holds NaN or infinity; write a valid one")]
    return affine_faults(where, affine)


def _grid(
    where: str, header: nib.Nifti1Header, shape: tuple[int, int, int]
) -> tuple[Grid, tuple[Fault, ...]]:
    """The grid of a header without faults, and what is doubtful about it."""
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = header.get_qform(coded=True)
    affine: Affine = header.get_best_affine()
    qfac, *sizes = (float(mm) for mm in header["pixdim"][:4])
    b, c, d = (float(header[f"quatern_{axis}"]) for axis in "bcd")
    grid = Grid(
        shape=shape,
        affine=affine,
        sform=sform,
        sform_code=int(sform_code),
        qform=qform,
        qform_code=int(qform_code),
        pixdim=(qfac, sizes[0], sizes[1], sizes[2]),
        quaternion=(b, c, d),
    )
    if sform is None and qform is None:
        message = (
            f"no orientation is stored (sform and qform code 0); {grid.orientation} is assumed, as nibabel "
            "does. Left and right may be swapped: write the true orientation into the file"
        )
        return grid, (Fault(where, "no-orientation", message),)
    return grid, tuple(_form_warnings(where, grid, np.array(sizes)))


def _form_warnings(where: str, grid: Grid, pixdim: NDArray[np.float64]) -> Iterator[Fault]:
    """What other readers, which go by another field, would see elsewhere."""
    if grid.sform is None:
        return
    if grid.qform is not None:
        distance = corner_distance(grid.sform, grid.qform, grid.shape)
        if distance > FORM_TOLERANCE_MM:
            message = (
                f"sform and qform place the image's corners {distance:.2f} mm apart; the sform is used. Copy "
                "the right one over the other"
            )
            yield Fault(where, "sform-qform", message)
    is_long = np.array(grid.shape) > 1  # the size of a single slice may hold anything
    if (np.abs(pixdim - grid.spacing) > PIXDIM_TOLERANCE * np.array(grid.spacing))[is_long].any():
        told = [" x ".join(f"{mm:.4g}" for mm in sizes) for sizes in (pixdim, grid.spacing)]
        message = (
            f"pixdim says voxels of {told[0]} mm, the sform of {told[1]} mm; the sform is used, other "
            "programs may go by pixdim. Write both alike"
        )
        yield Fault(where, "sform-pixdim", message)


def _scale(header: nib.Nifti1Header) -> tuple[float, float] | None:
    """Slope and intercept; a slope of 0 or NaN means none, by the standard and by what writers do."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    return (slope, inter) if np.isfinite(slope) and slope != 0 and (slope, inter) != (1, 0) else None
