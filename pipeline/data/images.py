"""Finding and reading images and label maps, whatever their format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.data.cases import Case, exists, id_fault
from pipeline.data.dicom import (
    SeriesRule,
    holds_dicom,
    is_dicom,
    list_dicom_files,
    read_series,
    series_hash,
)
from pipeline.data.nifti import Reading, is_nifti, nifti_stem, read_nifti
from pipeline.data.nrrd_metaimage import is_foreign
from pipeline.data.pictures import is_picture, read_picture
from pipeline.errors import Fault, InputError
from pipeline.files import sha256_of
from pipeline.volume import Volume

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<index>\d{4})")


_ONLY_SERIES = SeriesRule()


def read_image(path: Path, rule: SeriesRule = _ONLY_SERIES) -> tuple[Volume, ...]:
    """Reads a NIfTI, PNG or JPEG file (one volume per channel) or a DICOM series (one volume).

    Args:
        path: A file, or a folder in which DICOM series lie.
        rule: Which of the series.

    Raises:
        InputError: If it is damaged or not supported, with all faults found.
        ResourceError: If it does not fit into memory.
    """
    return read_with_warnings(path, rule).volumes


def read_with_warnings(path: Path, rule: SeriesRule = _ONLY_SERIES) -> Reading:
    """As `read_image`, with what was accepted but deserves a look."""
    if not exists(path):
        raise InputError(Fault(str(path), "missing-file", "no such file or folder; check the path"))
    if is_picture(path) and not path.is_dir():
        return read_picture(path)
    if is_nifti(path) and not path.is_dir():
        return read_nifti(path)
    if is_series(path):
        return read_series(path, rule)
    raise InputError(_file_type_fault(path, ".nii, .nii.gz, .png or .jpg file"))


def is_series(path: Path) -> bool:
    """Whether the path stands for DICOM: a folder, a DICOMDIR, or a file."""
    return path.is_dir() or is_dicom(path)


def source_hash(path: Path, rule: SeriesRule = _ONLY_SERIES) -> str:
    """SHA-256 of a file, or of the files of the DICOM series that the rule means.

    Raises:
        InputError: If it means none.
        OSError: If a file cannot be read.
    """
    return sha256_of(path) if is_nifti(path) or not is_series(path) else series_hash(path, rule)


def read_label_map(path: Path) -> Volume:
    """Reads a label map, also one stored as real numbers.

    Returns:
        The smallest unsigned integer type that holds all values, axes as stored.

    Raises:
        InputError: As `read_image`, and if there are several channels, values beyond 0 to 65535 or fractions.
        ResourceError: If it does not fit into memory.
    """
    return read_label_with_warnings(path).volumes[0]


def read_label_with_warnings(path: Path) -> Reading:
    """As `read_label_map`, with what was accepted but deserves a look."""
    reading = read_with_warnings(path)
    if len(reading.volumes) != 1:
        message = f"a label map has one channel, not {len(reading.volumes)}; combine them into one map"
        raise InputError(Fault(str(path), "label-channels", message))
    volume = reading.volumes[0]
    lowest, highest = float(volume.array.min()), float(volume.array.max())
    # Tables by value are as long as the largest: that of one stray voxel would not fit into memory.
    if lowest < 0 or highest > 65535:
        message = f"label values run from 0 to 65535, these from {lowest:g} to {highest:g}"
        raise InputError(Fault(str(path), "label-range", message))
    integers = volume.array.astype(np.min_scalar_type(int(highest)), copy=False)
    if num_odd := int(np.count_nonzero(integers != volume.array)):
        message = (
            f"label values must be whole numbers, {num_odd} voxels are not; was it resampled with "
            "interpolation? Use nearest neighbours"
        )
        raise InputError(Fault(str(path), "label-not-whole", message))
    return Reading((Volume(integers, volume.grid),), reading.warnings)


def find_inputs(
    paths: Sequence[Path], num_channels: int, rules: Sequence[SeriesRule] = (_ONLY_SERIES,)
) -> list[Case]:
    """Finds the cases behind paths given by hand: files, folders of NIfTI files, folders with DICOM inside.

    With several channels, the files `<case>_0000.nii.gz`, `<case>_0001.nii.gz` … of a folder make a case, and
    so does a single four-dimensional file. With one channel a trailing `_0000` is dropped from the id.

    Args:
        paths: Files and folders.
        num_channels: Of every case.
        rules: Which DICOM series each channel is.

    Raises:
        InputError: With all missing paths, unknown formats, wrong channels, and unsafe or doubled ids.
    """
    faults: list[Fault] = []
    files: list[Path] = []
    cases: list[Case] = []
    for path in dict.fromkeys(paths):
        try:
            nifti, is_dicom_input = _search(path)
        except InputError as error:
            faults += error.faults
            continue
        files += nifti
        if is_dicom_input and len(rules) == num_channels:
            name = series_name(path)
            series = () if list(rules) == [_ONLY_SERIES] else tuple(rules)
            cases.append(Case(name, name, (path,) * num_channels, series=series))
        elif is_dicom_input:
            message = (
                f"the model needs {num_channels} channels, {len(rules)} DICOM series are named; repeat "
                "--series for each channel in their order, or join them in one NIfTI file"
            )
            faults.append(Fault(str(path), "num-channels", message))
    files = list(dict.fromkeys(files))
    cases += _single_cases(files) if num_channels == 1 else group_channels(files, num_channels, faults)
    faults += id_faults(cases)
    if faults:
        raise InputError(faults)
    return cases


def _search(path: Path) -> tuple[list[Path], bool]:
    """The NIfTI files that a path stands for, and whether it stands for DICOM instead."""
    where = str(path)
    if not exists(path):
        raise InputError(Fault(where, "missing-file", "no such file or folder; check the path"))
    if is_nifti(path) and not path.is_dir():
        return [path], False
    if not is_series(path):
        raise InputError(_file_type_fault(path, ".nii or .nii.gz file, a folder of them"))
    if not path.is_dir():
        return [], True
    try:
        nifti = sorted(
            p for p in path.iterdir() if is_nifti(p) and not p.name.startswith(".") and p.is_file()
        )
        has_dicom = bool(list_dicom_files(path)) if nifti else holds_dicom(path)
    except OSError as error:
        message = f"the folder cannot be read ({(error.strerror or 'error').lower()})"
        raise InputError(Fault(where, "unreadable", message)) from error
    if nifti and has_dicom:
        message = "both NIfTI and DICOM files lie in this folder; name a folder with one kind"
        raise InputError(Fault(where, "mixed-formats", message))
    if not nifti and not has_dicom:
        message = "neither NIfTI files nor, with the folders inside, DICOM files lie in this folder"
        raise InputError(Fault(where, "no-images", message))
    return nifti, has_dicom


def _file_type_fault(path: Path, kinds: str) -> Fault:
    message = f"an image is a {kinds}, or a DICOM series (its folder, or a DICOMDIR)"
    if is_foreign(path):
        message = "NRRD and MetaImage are converted first: clinseg convert IMAGE OUT.nii.gz"
    return Fault(str(path), "file-type", message)


def series_name(path: Path) -> str:
    """The case id of a DICOM input: its own name, or that of the folder that a DICOMDIR lies in."""
    resolved = path.resolve()
    if path.is_dir():
        return resolved.name
    return resolved.parent.name if path.name.upper().startswith("DICOMDIR") else resolved.stem


def _single_cases(files: Iterable[Path]) -> list[Case]:
    ids = ((nifti_stem(file).removesuffix("_0000"), file) for file in files)
    return [Case(id=case_id, patient=case_id, images=(file,)) for case_id, file in ids]


def group_channels(files: Iterable[Path], num_channels: int, faults: list[Fault]) -> list[Case]:
    """Cases of NIfTI files, `<case>_0000` and so on; one file without such a number is a case of its own.

    Adds a fault for every case whose channels are not exactly 0 to `num_channels` - 1.
    """
    groups: dict[tuple[Path, str], dict[int, Path]] = {}
    cases: list[Case] = []
    for file in files:
        stem = nifti_stem(file)
        if match := _CHANNEL.fullmatch(stem):
            groups.setdefault((file.parent, match["case"]), {})[int(match["index"])] = file
        else:
            cases.append(Case(id=stem, patient=stem, images=(file,)))
    for (folder, case_id), channels in groups.items():
        if sorted(channels) != list(range(num_channels)):
            message = (
                f"channels {', '.join(f'_{i:04d}' for i in sorted(channels))} were found, the model needs "
                f"_0000 to _{num_channels - 1:04d}"
            )
            faults.append(Fault(str(folder / case_id), "num-channels", message))
        images = tuple(channels[index] for index in sorted(channels))
        cases.append(Case(id=case_id, patient=case_id, images=images))
    return cases


def id_faults(cases: Iterable[Case]) -> Iterator[Fault]:
    """Faults of ids that are unsafe, or that two cases have."""
    seen: dict[str, Case] = {}
    for case in cases:
        where = str(case.images[0])
        if fault := id_fault(where, case.id):
            yield fault
        elif (twin := seen.setdefault(case.id, case)) is not case:
            message = (
                f"the case id {case.id} is also that of {twin.images[0]}; give the files different names"
            )
            yield Fault(where, "duplicate-case", message)
