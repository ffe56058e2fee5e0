"""DICOM series, checked strictly by their tags before ITK reads the voxels.

ITK and others return a wrong volume without a word for a series with a missing, doubled or foreign slice, so
ITK is only given files that pass here, in an order that is ours. Patient and study tags are never parsed, and
no message carries more of a file than its name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.uid import RLELossless

from pipeline.data.geometry import affine_faults, corner_distance
from pipeline.data.nifti import check_memory
from pipeline.errors import Fault, InputError
from pipeline.volume import Affine, Grid, Volume

ORIENTATION_TOLERANCE = 1e-4
STEP_TOLERANCE, STEP_TOLERANCE_MM = 0.01, 0.01
"""How far a slice may lie from its place: 1 % of the step between slices, or 0.01 mm if that is more."""
GEOMETRY_TOLERANCE_MM = 0.05
"""How far ITK's corners may lie from those computed from the tags."""

_GEOMETRY_TAGS = ("Rows", "Columns", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")
_PIXEL_TAGS = ("BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
_NEEDED_TAGS = ("SeriesInstanceUID", *_GEOMETRY_TAGS, *_PIXEL_TAGS, "PixelData")
_RESCALE_TAGS = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")
_TAGS = (*_NEEDED_TAGS, *_RESCALE_TAGS, "SamplesPerPixel", "NumberOfFrames", "HighBit")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class _Slice:
    """The geometry of one file, in LPS millimetres."""

    path: Path
    series: str
    shape: tuple[int, int]  # columns, rows
    spacing: tuple[float, float]  # between columns, between rows
    orientation: NDArray[np.float64]  # (2, 3): direction along a row, direction along a column
    position: NDArray[np.float64]  # centre of the first pixel


def list_dicom_files(folder: Path) -> list[Path]:
    """Files of the folder that are DICOM by magic number or suffix; hidden ones and DICOMDIR are left out."""
    files = (p for p in folder.iterdir() if not p.name.startswith(".") and p.name.upper() != "DICOMDIR")
    return sorted(path for path in files if path.is_file() and _is_dicom(path))


def read_series(folder: Path) -> Volume:
    """Reads the one DICOM series in a folder, in rescaled units.

    Args:
        folder: Holds the files of one series, one slice each; files that are not DICOM are passed over.

    Returns:
        float32, `(column, row, slice)` with slices ordered along the normal; affine in RAS, as sform.

    Raises:
        InputError: If the files are not one whole series of parallel, evenly spaced slices.
        ResourceError: If it does not fit into the memory that is available.
    """
    where = str(folder)
    try:
        files = list_dicom_files(folder)
    except OSError as error:
        message = f"the folder cannot be read ({(error.strerror or 'error').lower()})"
        raise InputError(Fault(where, "unreadable", message)) from error
    slices = _read_slices(where, files)
    if faults := list(_agreement_faults(where, slices)):
        raise InputError(faults)
    normal = np.cross(*slices[0].orientation)
    slices.sort(key=lambda s: float(normal @ s.position))
    affine = _affine(slices)
    if faults := [*_position_faults(where, slices), *affine_faults(where, affine)]:
        raise InputError(faults)
    shape = (*slices[0].shape, len(slices))
    check_memory(where, 2 * 4 * int(np.prod(shape)))  # ITK's buffer and our copy of it
    array, itk_affine = _read_with_itk(where, [s.path for s in slices])
    if array.shape != shape or corner_distance(affine, itk_affine, shape) > GEOMETRY_TOLERANCE_MM:
        message = "ITK places the voxels elsewhere than the tags do; convert the series to NIfTI and check it"
        raise InputError(Fault(where, "geometry-disagreement", message))
    return Volume(array, Grid(shape, affine, sform=affine))


def _read_slices(where: str, files: Sequence[Path]) -> list[_Slice]:
    """Reads all headers; raises InputError with the faults of single files, those alike told once."""
    if len(files) < 2:
        message = f"a series needs at least 2 DICOM slices, {len(files)} found (sub-folders are not searched)"
        raise InputError(Fault(where, "too-few-slices", message))
    slices: list[_Slice] = []
    problems: dict[tuple[str, str], list[Path]] = {}
    for path in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom quotes the values it warns about
                dataset = dcmread(path, specific_tags=list(_TAGS))
                found = list(_file_problems(dataset))
                if not found:
                    slices.append(_parse_slice(path, dataset))
        except Exception:  # a parser fed with damaged bytes may raise anything
            found = [("unreadable", "the DICOM file is damaged; fetch it again from its source")]
        for problem in found:
            problems.setdefault(problem, []).append(path)
    if problems:
        raise InputError(
            Fault(where, rule, f"{message} ({_names(paths)})") for (rule, message), paths in problems.items()
        )
    return slices


def _file_problems(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Rule and message of everything that keeps one file from being a slice."""
    missing = [tag for tag in _NEEDED_TAGS if tag not in dataset or dataset[tag].is_empty]
    if missing:
        yield "missing-tag", f"{', '.join(missing)} missing; this is no plain image slice or was cut short"
        return
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        yield "multi-frame", "several frames in one file are not supported; convert to one file per slice"
        return
    if (photometric := dataset.PhotometricInterpretation) != "MONOCHROME2":
        yield "photometric", f"MONOCHROME2 is needed, not {_known(photometric)}; convert the series first"
        return
    if dataset.BitsAllocated not in (8, 16, 32):
        yield "pixel-type", "pixels of 8, 16 or 32 bits are needed; convert the series first"
    if min(dataset.PixelSpacing) <= 0:
        yield "pixel-spacing", "PixelSpacing must be two positive numbers of millimetres"
    slope, intercept = _rescale(dataset)
    if slope == 0 or not np.isfinite((slope, intercept)).all():
        yield "rescale", "RescaleSlope and RescaleIntercept must be finite, and the slope not 0"
    if "ModalityLUTSequence" in dataset:
        yield "modality-lut", "a modality lookup table is not supported; convert the series first"
    if not _is_whole(dataset):
        yield "pixel-data", "the pixel data do not fill the slice exactly; fetch the file again"


def _known(photometric: str) -> str:
    """The value if it is one of the standard's; a damaged file's could be anything."""
    return photometric if photometric in ("MONOCHROME1", "RGB", "PALETTE COLOR", "YBR_FULL") else "another"


def _rescale(dataset: Dataset) -> tuple[float, float]:
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)


def _is_whole(dataset: Dataset) -> bool:
    """Whether the pixel data hold one slice, no more and no less."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        expected = int(dataset.Rows) * int(dataset.Columns) * int(dataset.BitsAllocated) // 8
        return expected <= len(dataset.PixelData) <= expected + expected % 2
    frames = list(generate_frames(dataset.PixelData, number_of_frames=1))
    if syntax == RLELossless:
        return dataset.pixel_array.shape == (dataset.Rows, dataset.Columns)
    return len(frames) == 1 and frames[0].rstrip(b"\0").endswith(b"\xff\xd9")  # all of JPEG's family end so


def _parse_slice(path: Path, dataset: Dataset) -> _Slice:
    rows, columns = (float(mm) for mm in dataset.PixelSpacing)
    return _Slice(
        path=path,
        series=str(dataset.SeriesInstanceUID),
        shape=(int(dataset.Columns), int(dataset.Rows)),
        spacing=(columns, rows),
        orientation=np.array(dataset.ImageOrientationPatient, dtype=np.float64).reshape(2, 3),
        position=np.array(dataset.ImagePositionPatient, dtype=np.float64).reshape(3),
    )


def _agreement_faults(where: str, slices: Sequence[_Slice]) -> Iterator[Fault]:
    """Faults of files that do not belong together."""
    if (num_series := len({s.series for s in slices})) > 1:
        message = f"the folder holds {num_series} series; put each into a folder of its own"
        yield Fault(where, "several-series", message)
        return
    first = slices[0]
    if odd := [s.path for s in slices if s.shape != first.shape]:
        yield Fault(where, "slice-size", f"all slices need the same Rows and Columns; others: {_names(odd)}")
    if odd := [s.path for s in slices if not np.allclose(s.spacing, first.spacing, rtol=1e-4, atol=0)]:
        yield Fault(where, "pixel-spacing", f"all slices need the same PixelSpacing; others: {_names(odd)}")
    apart = [np.abs(s.orientation - first.orientation).max() for s in slices]
    if odd := [s.path for s, far in zip(slices, apart, strict=True) if not far <= ORIENTATION_TOLERANCE]:
        message = f"all slices need the same ImageOrientationPatient; others: {_names(odd)}"
        yield Fault(where, "slice-orientation", message)
    elif not np.abs(np.linalg.norm(first.orientation, axis=1) - 1).max() <= 1e-3:
        yield Fault(where, "slice-orientation", "ImageOrientationPatient must be two vectors of length 1")
    if odd := [s.path for s in slices if not np.isfinite(s.position).all()]:
        yield Fault(where, "slice-position", f"ImagePositionPatient is not finite in {_names(odd)}")


def _affine(slices: Sequence[_Slice]) -> Affine:
    """Voxel (column, row, slice) → RAS mm, from the tags of sorted slices (DICOM PS3.3 C.7.6.2.1.1)."""
    first = slices[0]
    affine = np.eye(4)
    affine[:3, :2] = (first.orientation * np.array(first.spacing)[:, None]).T
    affine[:3, 2] = (slices[-1].position - first.position) / (len(slices) - 1)
    affine[:3, 3] = first.position
    return _LPS_TO_RAS @ affine


def _position_faults(where: str, slices: Sequence[_Slice]) -> Iterator[Fault]:
    """Faults of sorted slices that do not stand on one line at even distances."""
    positions = np.array([s.position for s in slices])
    steps = np.diff(positions @ np.cross(*slices[0].orientation))
    if odd := [s.path for s, step in zip(slices[1:], steps, strict=True) if step < STEP_TOLERANCE_MM]:
        message = (
            f"{len(odd)} slices lie where another one lies, such as {_names(odd)}; keep one file per "
            "position (phases, echoes and repeated exports belong in folders of their own)"
        )
        yield Fault(where, "slice-position", message)
        return
    tolerance = max(STEP_TOLERANCE * float(np.median(steps)), STEP_TOLERANCE_MM)
    if steps.max() - steps.min() > tolerance:
        widest = int(np.argmax(steps))
        ends = _names([slices[widest].path, slices[widest + 1].path])
        message = (
            f"the steps between slices run from {steps.min():.3f} to {steps.max():.3f} mm, the largest "
            f"between {ends}; fetch the missing slice, or resample"
        )
        yield Fault(where, "slice-step", message)
        return
    straight = positions[0] + np.linspace(0, 1, len(slices))[:, None] * (positions[-1] - positions[0])
    shifts = np.abs(positions - straight).max(axis=1)
    if odd := [s.path for s, shift in zip(slices, shifts, strict=True) if shift > tolerance]:
        message = (
            f"the slices are shifted against each other, such as {_names(odd)}; resample the series first"
        )
        yield Fault(where, "slice-shift", message)


def _read_with_itk(where: str, files: Sequence[Path]) -> tuple[NDArray[np.float32], Affine]:
    with warnings.catch_warnings():
        # ITK's wrappers warn when first loaded, also lazily; raised as errors these crash the interpreter.
        warnings.simplefilter("ignore")
        import itk  # noqa: PLC0415 - it takes seconds that users of NIfTI need not wait

        reader = itk.ImageSeriesReader[itk.Image[itk.F, 3]].New(
            ImageIO=itk.GDCMImageIO.New(), FileNames=[str(path) for path in files]
        )
        try:
            reader.Update()
        except RuntimeError as error:
            message = "ITK cannot decode the series; convert it to an uncompressed transfer syntax"
            raise InputError(Fault(where, "undecodable", message)) from error
        image = reader.GetOutput()
        affine = np.eye(4)
        affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(itk.spacing(image))
        affine[:3, 3] = itk.origin(image)
        return itk.array_from_image(image).transpose(2, 1, 0), _LPS_TO_RAS @ affine


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() == ".dcm":
        return True  # even without the magic number: a slice that was cut short must not go unnoticed
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _names(paths: Sequence[Path]) -> str:
    """Up to three file names, the only part of a path or file that messages show."""
    told = ", ".join(path.name for path in paths[:3])
    return told if len(paths) <= 3 else f"{told} and {len(paths) - 3} more"
