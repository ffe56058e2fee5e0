"""The three forms of a manifest, read but not yet judged.

A Medical Segmentation Decathlon `dataset.json`, an nnU-Net raw folder (or its `dataset.json`) and a CSV all
become the same `Manifest`; `cases` judges what holds for all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeInt, ValidationError

from pipeline.data.nifti import is_nifti, nifti_stem
from pipeline.data.tables import parse_table, read_text, split_names
from pipeline.errors import ConfigError, Fault

_FORMS = "a dataset.json, an nnU-Net raw folder, or a CSV"
_COLUMNS = "case, image (or image_…), and patient, label, labelled, class, fold where there are"


@dataclass(frozen=True)
class Entry:
    """A case as a manifest words it: its id may be unsafe or doubled, its files may be missing.

    Attributes:
        where: Place in the manifest.
        id: Case id.
        patient: Patient id.
        images: Image files, by channel.
        label: Label map.
        fold: Fold.
        labelled: Structures that were drawn in its label map; None if nothing is said of it.
        classes: The classes that it is of; None if nothing is said of them.
        row: Array and row in the one image file that holds many images.
    """

    where: str
    id: str
    patient: str
    images: tuple[Path, ...]
    label: Path | None
    fold: int | None
    labelled: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    row: tuple[str, int] | None = None


@dataclass
class Manifest:
    """What a manifest says.

    Attributes:
        channels: Names of the image channels.
        labels: Value of each label name; None if it names none.
        regions: Overlapping structures as unions of label values, outer to inner, if it names such.
        ignore_value: What stands in label maps where nobody knows, if the manifest says so.
        entries: The cases in its order.
        faults: What could not be made sense of.
    """

    channels: tuple[str, ...]
    labels: dict[str, int] | None = None
    regions: dict[str, tuple[int, ...]] | None = None
    ignore_value: int | None = None
    entries: list[Entry] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def add_fault(self, where: str, rule: str, message: str) -> None:
        """Notes what could not be made sense of."""
        self.faults.append(Fault(where, rule, message))


def parse_manifest(path: Path) -> Manifest:
    """Reads a manifest of any form; its paths are taken relative to it.

    Raises:
        ConfigError: If it cannot be read, or has none of the three forms.
    """
    if path.suffix.lower() == ".csv":
        return parse_csv(path)
    return _parse_json(path, read_text(path, _FORMS))


class _DecathlonEntry(BaseModel):
    """A case of a Decathlon manifest; `fold` is MONAI's addition, `labelled` ours."""

    image: str | list[str]
    label: str | None = None
    fold: NonNegativeInt | None = None
    labelled: tuple[str, ...] | None = None


class _Decathlon(BaseModel):
    modality: dict[str, str] = {"0": "image"}
    labels: dict[str, str] | None = None
    training: list[_DecathlonEntry]
    validation: list[_DecathlonEntry] = []


class _NnUnet(BaseModel):
    """nnU-Net's; `labelled` (structures by case) is ours, and nnU-Net does not mind it."""

    channel_names: dict[str, str]
    labels: dict[str, int | list[int]]
    regions_class_order: list[int] | None = None
    file_ending: str
    labelled: dict[str, tuple[str, ...]] = {}


def _parse_json(path: Path, text: str) -> Manifest:
    try:
        content = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(Fault(str(path), "manifest-syntax", f"no valid JSON: {reason}")) from error
    if not isinstance(content, dict) or not {"training", "channel_names"} & set(content):
        message = "neither a Decathlon manifest (`training`) nor one of nnU-Net (`channel_names`)"
        raise ConfigError(Fault(str(path), "manifest-format", message))
    try:
        if "training" in content:
            return _parse_decathlon(path, _Decathlon.model_validate(content))
        return _parse_nnunet(path, _NnUnet.model_validate(content))
    except ValidationError as error:
        raise ConfigError(
            Fault(f"{path}: {'.'.join(map(str, e['loc']))}", "manifest-format", e["msg"].lower())
            for e in error.errors(include_url=False, include_input=False)
        ) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} occurs twice")
        found[key] = value
    return found


def _parse_decathlon(path: Path, content: _Decathlon) -> Manifest:
    manifest = Manifest(_in_order(path, content.modality), _decathlon_labels(path, content.labels))
    for part, entries in (("training", content.training), ("validation", content.validation)):
        for index, entry in enumerate(entries):
            where = f"{path}: {part}[{index}]"
            names = [entry.image] if isinstance(entry.image, str) else entry.image
            if not names:
                manifest.add_fault(where, "missing-value", "image: names no file")
                continue
            images = tuple(path.parent / name for name in names)
            case_id = nifti_stem(images[0]).removesuffix("_0000")
            label = None if entry.label is None else path.parent / entry.label
            fold = 0 if part == "validation" else entry.fold
            manifest.entries.append(Entry(where, case_id, case_id, images, label, fold, entry.labelled))
    return manifest


def _decathlon_labels(path: Path, labels: dict[str, str] | None) -> dict[str, int] | None:
    """Value by name, from the Decathlon's name by value."""
    if labels is None:
        return None
    if len(set(labels.values())) < len(labels) or not all(re.fullmatch("[0-9]{1,5}", v) for v in labels):
        message = "labels: each whole number needs a name of its own, such as {'0': 'background'}"
        raise ConfigError(Fault(str(path), "manifest-format", message))
    return {name: int(value) for value, name in labels.items()}


def _parse_nnunet(path: Path, content: _NnUnet) -> Manifest:
    ending = content.file_ending
    if not is_nifti(Path(f"case{ending}")):
        message = f"file_ending: {ending!r} is not supported; convert the images to .nii.gz"
        raise ConfigError(Fault(str(path), "manifest-format", message))
    labels, regions, ignore_value = _nnunet_labels(path, content)
    manifest = Manifest(_in_order(path, content.channel_names), labels, regions, ignore_value)
    images: dict[str, dict[int, Path]] = {}
    for file in _list_files(path.parent / "imagesTr", ending):
        if match := re.fullmatch(r"(.+)_(\d{4})", file.name.removesuffix(ending)):
            images.setdefault(match[1], {})[int(match[2])] = file
        else:
            message = f"an image is named <case>_0000{ending}; rename it or take it out"
            manifest.add_fault(str(file), "unpaired", message)
    maps = {f.name.removesuffix(ending): f for f in _list_files(path.parent / "labelsTr", ending)}
    for case_id in sorted(images.keys() | maps.keys()):
        where, channels = str(path.parent / case_id), images.get(case_id, {})
        manifest.faults += _pair_faults(where, channels, case_id in maps, len(manifest.channels))
        files = tuple(channels[index] for index in sorted(channels))
        label, labelled = maps.get(case_id), content.labelled.get(case_id)
        manifest.entries.append(Entry(where, case_id, case_id, files, label, None, labelled))
    for case_id in sorted(content.labelled.keys() - images.keys() - maps.keys()):
        message = f"labelled: there is no case {case_id[:60]!r}; mend its name"
        manifest.add_fault(str(path), "unpaired", message)
    return manifest


def _nnunet_labels(
    path: Path, content: _NnUnet
) -> tuple[dict[str, int] | None, dict[str, tuple[int, ...]] | None, int | None]:
    """Labels, regions if there are such, and the value to ignore.

    With regions nnU-Net names no values, so each has the name of the region that it alone makes up, or its
    number. `regions_class_order` is what each region is written with, which here is its first value;
    without an order that fits, neither is known.
    """
    said = dict(content.labels)
    ignore_value = said.pop("ignore", None)
    if isinstance(ignore_value, list):
        raise ConfigError(Fault(str(path), "manifest-format", "labels: ignore is one number, not a list"))
    plain = {name: value for name, value in said.items() if isinstance(value, int)}
    if len(plain) == len(said):
        return plain, None, ignore_value
    members = {n: (v,) if isinstance(v, int) else tuple(dict.fromkeys(v)) for n, v in said.items() if v != 0}
    order = content.regions_class_order or []
    has_own_values = len(set(order)) == len(order) == len(members)
    if not has_own_values or any(v not in m for v, m in zip(order, members.values(), strict=True)):
        return None, None, ignore_value
    regions = {
        name: (first, *(value for value in values if value != first))
        for first, (name, values) in zip(order, members.items(), strict=True)
    }
    alone = {values[0]: name for name, values in regions.items() if len(values) == 1}
    values = sorted({value for region in regions.values() for value in region})
    background = next((name for name, value in plain.items() if value == 0), "background")
    return {background: 0, **{alone.get(v, f"label_{v}"): v for v in values}}, regions, ignore_value


def _pair_faults(
    where: str, channels: dict[int, Path], has_label: bool, num_channels: int
) -> Iterator[Fault]:
    if not channels:
        yield Fault(where, "unpaired", "labelsTr has this case, imagesTr does not; add or remove it")
    elif not has_label:
        yield Fault(where, "unpaired", "imagesTr has this case, labelsTr does not; add or remove it")
    if channels and sorted(channels) != list(range(num_channels)):
        found = ", ".join(f"_{index:04d}" for index in sorted(channels))
        message = f"channel_names declares _0000 to _{num_channels - 1:04d}, found are {found}"
        yield Fault(where, "num-channels", message)


def _list_files(folder: Path, ending: str) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.name.endswith(ending) and not p.name.startswith("."))
    except OSError as error:
        message = "this folder of an nnU-Net data set cannot be read; is it there?"
        raise ConfigError(Fault(str(folder), "manifest-unreadable", message)) from error


def _in_order(path: Path, channels: dict[str, str]) -> tuple[str, ...]:
    """Channel names from nnU-Net's and the Decathlon's {"0": "T1", "1": "T2"}."""
    if not channels or set(channels) != {str(index) for index in range(len(channels))}:
        message = f"channels must be numbered from 0, not {', '.join(channels) or 'missing'}"
        raise ConfigError(Fault(str(path), "manifest-format", message))
    return tuple(channels[str(index)] for index in range(len(channels)))


def parse_csv(path: Path) -> Manifest:
    """Reads a CSV manifest; its paths are taken relative to it.

    Raises:
        ConfigError: If it cannot be read, is no CSV, or lacks a column.
    """
    table = parse_table(path, read_text(path, _FORMS), _names_images, _COLUMNS)
    images = [name for name in table.columns if name.startswith("image")]
    manifest = Manifest(tuple(name.removeprefix("image_") for name in images), faults=table.faults)
    for where, row in table.rows:
        _add_row(manifest, path.parent, where, row)
    return manifest


def _names_images(columns: list[str]) -> bool:
    return "case" in columns and any(name.startswith("image") for name in columns)


def _add_row(manifest: Manifest, folder: Path, where: str, row: dict[str, str]) -> None:
    images = [value for name, value in row.items() if name.startswith("image")]
    label, labelled, fold = row.get("label"), row.get("labelled"), row.get("fold")
    if not all(images):
        manifest.add_fault(where, "missing-value", "every image column needs a file")
    elif fold and not (fold.isdecimal() and len(fold) < 4):
        manifest.add_fault(where, "manifest-format", f"fold is a small whole number, not {fold[:20]!r}")
    else:
        entry = Entry(
            where=where,
            id=row["case"],
            patient=row.get("patient") or row["case"],
            images=tuple(folder / image for image in images),
            label=folder / label if label else None,
            fold=int(fold) if fold else None,
            labelled=split_names(labelled) if labelled else None,
            classes=split_names(row["class"]) if "class" in row else None,
        )
        manifest.entries.append(entry)
