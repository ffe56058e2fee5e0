"""The three forms in which images and their classes are listed, read but not yet judged.

An `.npz` in MedMNIST's form, a folder with a sub-folder per class and a CSV with a column `class` all become
the same `ClassManifest`; `class_study` judges what holds for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import ClassificationDataSection
from pipeline.data.cases import exists
from pipeline.data.class_folders import find_images, name_images
from pipeline.data.entries import Entry
from pipeline.data.manifests import parse_csv
from pipeline.data.medmnist import (
    IMAGES,
    LABELS,
    label_faults,
    name_labels,
    number_classes,
    read_images_header,
    read_labels,
)
from pipeline.data.npz import is_npz, list_arrays, row_channels
from pipeline.errors import ConfigError, Fault, FaultError, InputError

COLOURS = ("red", "green", "blue")
_FORMS = "give an .npz in MedMNIST's form, a folder with a sub-folder per class, or a CSV with a column class"
_GIVEN_FOLDS = {"train": 1, "val": 0}


@dataclass
class ClassManifest:
    """What a manifest says.

    Attributes:
        classes: Their names, in the order of the outputs: as the job names them, or else the manifest.
        channels: Names of the image channels; None if only the images themselves can tell.
        entries: The cases in its order.
        faults: What could not be made sense of.
    """

    classes: tuple[str, ...]
    channels: tuple[str, ...] | None = None
    entries: list[Entry] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def parse_class_manifest(section: ClassificationDataSection) -> ClassManifest:
    """Reads a manifest of any form; its paths are taken relative to it.

    Raises:
        ConfigError: If it is not there, or has none of the three forms.
        InputError: If an `.npz` is damaged, or its arrays do not have that form.
    """
    path = section.manifest
    if not exists(path):
        raise ConfigError(Fault(str(path), "manifest-unreadable", f"there is no such manifest; {_FORMS}"))
    if path.is_dir():
        return _read_folder(section)
    if is_npz(path):
        return _read_npz(section)
    if path.suffix.lower() == ".csv":
        return _read_csv(section)
    raise ConfigError(Fault(str(path), "manifest-format", f"it has none of the known forms; {_FORMS}"))


def read_class_folder(folder: Path) -> tuple[list[str], list[Entry], list[Fault]]:
    """Names of the classes, which are the visible sub-folders, their images, and what is wrong with them."""
    try:
        folders = sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
    except OSError as error:
        message = f"the folder cannot be read ({(error.strerror or 'error').lower()})"
        raise ConfigError(Fault(str(folder), "manifest-unreadable", message)) from error
    faults: list[Fault] = []
    classes: dict[Path, str] = {}
    for inner in folders:
        try:
            images = find_images(inner, 0)
        except InputError as error:
            faults += error.faults
            continue
        if images == [inner]:
            message = (
                "DICOM files lie in it directly; give each series a folder of its own in that of its class"
            )
            faults.append(Fault(str(inner), "loose-dicom", message))
        else:
            classes |= dict.fromkeys(images, inner.name)
    entries = [
        Entry(str(image), case_id, case_id, (image,), label=None, fold=None, classes=(classes[image],))
        for case_id, image in name_images(list(classes))
    ]
    return [inner.name for inner in folders], entries, faults


def _read_folder(section: ClassificationDataSection) -> ClassManifest:
    names, entries, faults = read_class_folder(section.manifest)
    return ClassManifest(section.classes or tuple(names), None, entries, faults)


def _read_csv(section: ClassificationDataSection) -> ClassManifest:
    manifest = parse_csv(section.manifest)
    entries = manifest.entries
    if any(entry.classes is None for entry in entries):
        message = "the first line names no column class, which tells what each image is"
        raise ConfigError(Fault(f"{section.manifest}:1", "manifest-format", message))
    found = {name for entry in entries for name in entry.classes or ()}
    channels = manifest.channels if len(manifest.channels) > 1 else None
    return ClassManifest(section.classes or tuple(sorted(found)), channels, entries, manifest.faults)


def _read_npz(section: ClassificationDataSection) -> ClassManifest:
    path, names = section.manifest, list_arrays(section.manifest)
    parts = [part for part in _GIVEN_FOLDS if f"{part}_{IMAGES}" in names]
    if "train" not in parts:
        message = f"it holds no train_images; it holds {', '.join(names[:10]) or 'no array'}. Or {_FORMS}"
        raise ConfigError(Fault(str(path), "manifest-format", message))
    faults: list[Fault] = []
    shapes, labels = {}, {}
    for part in parts:
        try:
            shapes[part] = read_images_header(path, f"{part}_").shape
            labels[part] = read_labels(path, f"{part}_")
        except FaultError as error:
            faults += error.faults
    if faults:
        raise InputError(faults)
    channels = {row_channels(shape) for shape in shapes.values()}
    if len(channels) > 1:
        message = f"train_images {shapes['train']} are in colour or val_images {shapes['val']}, but not both"
        raise InputError(Fault(str(path), "image-shape", message))
    classes = section.classes or number_classes(list(labels.values()), section.multi_label)
    manifest = ClassManifest(classes, COLOURS if channels == {3} else ("image",))
    for part in parts:
        where = f"{path}: {part}_{LABELS}"
        found = list(label_faults(where, labels[part], classes, section.multi_label))
        if len(labels[part]) != shapes[part][0]:
            message = (
                f"it has {len(labels[part])} rows, the images have {shapes[part][0]}; each needs its own"
            )
            found.append(Fault(where, "label-count", message))
        manifest.faults += found
        if not found:
            fold = _GIVEN_FOLDS[part] if len(parts) > 1 else None
            rows = name_labels(labels[part], classes, section.multi_label)
            manifest.entries += _row_entries(path, part, rows, fold)
    return manifest


def _row_entries(path: Path, part: str, rows: list[tuple[str, ...]], fold: int | None) -> list[Entry]:
    name = f"{part}_{IMAGES}"
    return [
        Entry(
            f"{path}: {name}[{row}]",
            f"{part}-{row}",
            f"{part}-{row}",
            (path,),
            None,
            fold,
            None,
            own,
            (name, row),
        )
        for row, own in enumerate(rows)
    ]
