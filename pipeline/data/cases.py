"""Cases of a study: which there are, whose they are, and what their label values mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import DataSection
from pipeline.data.manifests import Entry, parse_manifest
from pipeline.errors import ConfigError, Fault, InputError

_MAX_ID_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Case:
    """One image set of a patient: ids and paths, no voxels.

    Attributes:
        id: Unique in the study and safe as a file name.
        patient: Cases of one patient stay in one fold.
        images: One file (or DICOM series folder) per channel, or one file that holds them all.
        label: The label map.
        fold: The fold that the manifest puts the case into, if any.
    """

    id: str
    patient: str
    images: tuple[Path, ...]
    label: Path | None = None
    fold: int | None = None


@dataclass(frozen=True)
class Study:
    """All cases, and what is declared about them.

    Attributes:
        cases: In the manifest's order.
        labels: Value of each label name, background included.
        channels: Names of the image channels.
    """

    cases: tuple[Case, ...]
    labels: dict[str, int]
    channels: tuple[str, ...]


def read_manifest(section: DataSection) -> Study:
    """Reads the manifest that a job names: a Decathlon `dataset.json`, an nnU-Net raw folder, or a CSV.

    Raises:
        ConfigError: If the manifest cannot be read as one, or labels and regions do not fit.
        InputError: If cases are wrong: files missing or unpaired, ids doubled or unsafe. Carries all faults.
    """
    path = section.manifest
    if exists(path) and path.is_dir():
        path = path / "dataset.json"
    manifest = parse_manifest(path)
    labels = section.labels if section.labels is not None else manifest.labels
    config_faults = [*_label_faults(path, labels), *_region_faults(section, labels or {})]
    case_faults = [*manifest.faults, *_entry_faults(manifest.entries)]
    if not manifest.entries and not case_faults:
        case_faults.append(Fault(str(path), "no-cases", "the manifest names no case"))
    if case_faults:
        raise InputError([*case_faults, *config_faults])
    if config_faults:
        raise ConfigError(config_faults)
    cases = (Case(e.id, e.patient, e.images, e.label, e.fold) for e in manifest.entries)
    return Study(tuple(cases), dict(labels or {}), manifest.channels)


def id_fault(where: str, case_id: str) -> Fault | None:
    """The fault of an id that is unsafe as a file name, if it is."""
    is_safe = (
        case_id.isprintable() and not set(case_id) & set("/\\") and case_id[:1] not in ("", ".", "-", " ")
    )
    if is_safe and len(case_id.encode()) <= _MAX_ID_LENGTH:
        return None
    message = (
        f"the case id {case_id[:60]!r} cannot be a file name: no separators or control characters, no "
        f"leading dot, dash or blank, at most {_MAX_ID_LENGTH} bytes"
    )
    return Fault(where, "unsafe-id", message)


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; False also for what can be no path, such as a name too long."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _entry_faults(entries: Sequence[Entry]) -> Iterator[Fault]:
    seen: dict[str, Entry] = {}
    for entry in entries:
        if fault := id_fault(entry.where, entry.id):
            yield fault
        elif (twin := seen.setdefault(entry.id, entry)) is not entry:
            message = f"the case id {entry.id} was already given at {twin.where}; every case needs its own"
            yield Fault(entry.where, "duplicate-case", message)
        for file in (*entry.images, *((entry.label,) if entry.label else ())):
            if not exists(file):
                message = f"there is no {str(file)!r}; mend the manifest or add the file"
                yield Fault(entry.where, "missing-file", message)


def _label_faults(path: Path, labels: dict[str, int] | None) -> Iterator[Fault]:
    if labels is None:
        message = (
            "the manifest names no labels, or nnU-Net's regions or ignore label, which are not read; give "
            "data.labels, such as {background: 0, liver: 1}, and data.regions"
        )
        yield Fault(str(path), "missing-labels", message)
    elif (
        len(set(labels.values())) < len(labels)
        or min(labels.values(), default=1) != 0
        or max(labels.values()) > 65535
    ):
        message = "labels: each name needs its own value from 0, the background, to 65535"
        yield Fault(str(path), "labels", message)


def _region_faults(section: DataSection, labels: dict[str, int]) -> Iterator[Fault]:
    declared = set(labels.values()) - {0}
    for name, values in (section.regions or {}).items():
        if odd := [value for value in values if value not in declared]:
            message = (
                f"a region unites declared label values ({', '.join(map(str, sorted(declared)))}), not {odd}"
            )
            yield Fault(f"data.regions.{name}", "regions", message)
