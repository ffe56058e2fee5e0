"""What a person names to be classified, and what it is known to be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.data.cases import Case, entry_faults, exists
from pipeline.data.class_folders import find_images, is_image_file, name_images
from pipeline.data.class_manifests import read_class_folder
from pipeline.data.class_study import class_faults
from pipeline.data.entries import Entry
from pipeline.data.images import group_channels, id_faults, is_series
from pipeline.data.manifests import parse_csv
from pipeline.data.medmnist import (
    IMAGES,
    LABELS,
    choose_part,
    label_faults,
    name_labels,
    read_images_header,
    read_labels,
    split_part,
)
from pipeline.data.nifti import is_nifti
from pipeline.data.npz import is_npz, row_channels
from pipeline.data.tables import parse_table, read_text, split_names
from pipeline.errors import Fault, InputError

_REFERENCES = (
    "an .npz with labels, a folder with a sub-folder per class, or a CSV with the columns case, class"
)


def find_class_inputs(paths: Sequence[Path], num_channels: int) -> list[Case]:
    """Finds the cases behind paths given by hand.

    A path is a NIfTI, PNG or JPEG file, a DICOM series (its folder, DICOMDIR or single file), a folder of
    these (and one level of sub-folders, such as one per class), a CSV with the columns `case`, `image` (or
    several `image_…`) and, where a label map tells the region, `label`, or an `.npz`. Of the last, the rows
    of its only array of images are taken, or those of `test_images`, or with `FILE.npz#val` those of
    `val_images`; their ids are their numbers from 0. Ids not listed are the names of files; of those that are
    alike, the folder's name goes before.
    With several channels, NIfTI files `<case>_0000.nii.gz`, `<case>_0001.nii.gz` … make a case.

    Raises:
        InputError: With all that is missing, of an unknown form, or has the wrong number of channels, and
            with all unsafe or doubled ids.
    """
    paths = list(dict.fromkeys(paths))
    if any(is_npz(split_part(path)[0]) for path in paths):
        if len(paths) > 1:
            message = "the rows of an .npz are numbered from 0, so that it is taken alone; name nothing else"
            raise InputError(Fault(", ".join(map(str, paths[:3])), "npz-not-alone", message))
        return _find_rows(*split_part(paths[0]), num_channels)
    faults: list[Fault] = []
    images: list[Path] = []
    listed: list[Case] = []
    for path in paths:
        try:
            if path.suffix.lower() == ".csv":
                listed += _read_manifest(path)
            else:
                images += _search(path)
        except InputError as error:
            faults += error.faults
    cases = listed + _build_cases(list(dict.fromkeys(images)), num_channels, faults)
    faults += id_faults(cases)
    if faults:
        raise InputError(faults)
    return cases


def read_references(path: Path, classes: Sequence[str], is_multi_label: bool) -> dict[str, tuple[str, ...]]:
    """Reads what classes cases are known to be of.

    Args:
        path: An `.npz` with labels (with `#val` as in `find_class_inputs`), a folder with a sub-folder per
            class, or a CSV with the columns `case` and `class`, such as a manifest.
        classes: Names of the classes, in the order of the outputs: what the labels of an `.npz` number.
        is_multi_label: Whether a case can be of several, or of none.

    Returns:
        Names of classes by case id, the ids being those that `find_class_inputs` gives to the same images.

    Raises:
        ConfigError: If there is no such file, or it is of no known form.
        InputError: With all cases that are named twice, or whose classes are unknown, missing or too many.
    """
    file, part = split_part(path)
    if is_npz(file):
        return _read_rows(file, part, classes, is_multi_label)
    if exists(path) and path.is_dir():
        _, entries, faults = read_class_folder(path)
    else:
        entries, faults = _read_table(path)
    faults += [*entry_faults(entries), *class_faults(entries, classes, is_multi_label)]
    if not entries and not faults:
        faults.append(Fault(str(path), "no-cases", f"it names no case; give {_REFERENCES}"))
    if faults:
        raise InputError(faults)
    return {entry.id: entry.classes or () for entry in entries}


def _search(path: Path) -> list[Path]:
    where = str(path)
    if not exists(path):
        raise InputError(Fault(where, "missing-file", "no such file or folder; check the path"))
    if is_image_file(path) and not path.is_dir():
        return [path]
    if not path.is_dir():
        if is_series(path):
            return [path]
        message = (
            "an input is a .nii, .nii.gz, .png, .jpg, .csv or .npz file, a folder of images or of a DICOM "
            "series, or a DICOMDIR"
        )
        raise InputError(Fault(where, "file-type", message))
    if found := find_images(path, 1):
        return found
    message = "no image lies in this folder, nor in those inside it (they are searched one level deep)"
    raise InputError(Fault(where, "no-images", message))


def _read_manifest(path: Path) -> list[Case]:
    manifest = parse_csv(path)
    faults = [*manifest.faults, *entry_faults(manifest.entries)]
    if not manifest.entries and not faults:
        faults.append(Fault(str(path), "no-cases", "it lists no case; check the path"))
    if faults:
        raise InputError(faults)
    return [Case(entry.id, entry.patient, entry.images, entry.label) for entry in manifest.entries]


def _build_cases(images: Sequence[Path], num_channels: int, faults: list[Fault]) -> list[Case]:
    is_single = num_channels == 1
    cases = [
        Case(id=case_id, patient=case_id, images=(image,))
        for case_id, image in name_images([i for i in images if is_single or not is_nifti(i)])
    ]
    return cases if is_single else cases + group_channels(filter(is_nifti, images), num_channels, faults)


def _find_rows(path: Path, part: str, num_channels: int) -> list[Case]:
    prefix = choose_part(path, part, IMAGES)
    shape = read_images_header(path, prefix).shape
    name = prefix + IMAGES
    if (found := row_channels(shape)) != num_channels:
        message = f"the model needs {num_channels} channels, images of shape {shape[1:]} have {found}"
        raise InputError(Fault(f"{path}: {name}", "num-channels", message))
    ids = map(str, range(shape[0]))
    return [Case(id=i, patient=i, images=(path,), row=(name, row)) for row, i in enumerate(ids)]


def _read_rows(
    path: Path, part: str, classes: Sequence[str], is_multi_label: bool
) -> dict[str, tuple[str, ...]]:
    prefix = choose_part(path, part, LABELS)
    labels = read_labels(path, prefix)
    if faults := list(label_faults(f"{path}: {prefix}{LABELS}", labels, classes, is_multi_label)):
        raise InputError(faults)
    return {str(row): names for row, names in enumerate(name_labels(labels, classes, is_multi_label))}


def _read_table(path: Path) -> tuple[list[Entry], list[Fault]]:
    text = read_text(path, _REFERENCES)
    table = parse_table(path, text, {"case", "class"}.issubset, "case and class")
    entries = [
        Entry(where, row["case"], row["case"], (), label=None, fold=None, classes=split_names(row["class"]))
        for where, row in table.rows
    ]
    return entries, table.faults
