"""The three forms of a manifest, read but not yet judged.

A Medical Segmentation Decathlon `dataset.json`, an nnU-Net raw folder (or its `dataset.json`) and a CSV all
become the same `Manifest`; `cases` judges what holds for all of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.data.decathlon import parse_decathlon
from pipeline.data.entries import Entry, Manifest
from pipeline.data.nnunet import parse_nnunet
from pipeline.data.tables import parse_table, read_text, split_names
from pipeline.errors import ConfigError, Fault

_FORMS = "a dataset.json, an nnU-Net raw folder, or a CSV"
_COLUMNS = "case, image (or image_…), and patient, label, labelled, class, fold where there are"


def parse_manifest(path: Path) -> Manifest:
    """Reads a manifest of any form; its paths are taken relative to it.

    Raises:
        ConfigError: If it cannot be read, or has none of the three forms.
    """
    if path.suffix.lower() == ".csv":
        return parse_csv(path)
    return _parse_json(path, read_text(path, _FORMS))


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
        return (parse_decathlon if "training" in content else parse_nnunet)(path, content)
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
