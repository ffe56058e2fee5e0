"""A `dataset.json` of the Medical Segmentation Decathlon."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, NonNegativeInt

from pipeline.data.entries import Entry, Manifest, channels_in_order
from pipeline.data.nifti import nifti_stem
from pipeline.errors import ConfigError, Fault


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


def parse_decathlon(path: Path, said: object) -> Manifest:
    """The cases of a Decathlon manifest.

    Args:
        path: Of the manifest, to which its paths are relative.
        said: What its JSON holds.

    Raises:
        pydantic.ValidationError: If something is missing or of the wrong type.
        ConfigError: If channels or labels make no sense.
    """
    content = _Decathlon.model_validate(said)
    manifest = Manifest(channels_in_order(path, content.modality), _decathlon_labels(path, content.labels))
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
