"""A raw folder of nnU-Net: its `dataset.json`, `imagesTr` and `labelsTr`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from pipeline.data.entries import Entry, Manifest, channels_in_order
from pipeline.data.nifti import is_nifti
from pipeline.errors import ConfigError, Fault


class _NnUnet(BaseModel):
    """nnU-Net's; `labelled` (structures by case) is ours, and nnU-Net does not mind it."""

    channel_names: dict[str, str]
    labels: dict[str, int | list[int]]
    regions_class_order: list[int] | None = None
    file_ending: str
    labelled: dict[str, tuple[str, ...]] = {}


def parse_nnunet(path: Path, said: object) -> Manifest:
    """The cases that lie beside a `dataset.json` of nnU-Net.

    Args:
        path: Of the `dataset.json`.
        said: What its JSON holds.

    Raises:
        pydantic.ValidationError: If something is missing or of the wrong type.
        ConfigError: If channels or labels make no sense, or a folder cannot be read.
    """
    content = _NnUnet.model_validate(said)
    ending = content.file_ending
    if not is_nifti(Path(f"case{ending}")):
        message = f"file_ending: {ending!r} is not supported; convert the images to .nii.gz"
        raise ConfigError(Fault(str(path), "manifest-format", message))
    labels, regions, ignore_value = _nnunet_labels(path, content)
    manifest = Manifest(channels_in_order(path, content.channel_names), labels, regions, ignore_value)
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
