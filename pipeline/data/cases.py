"""Cases of a study: which there are, whose they are, and what their label values mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config.sections import CasesSection
from pipeline.config.segmentation import DataSection
from pipeline.data.dicom import SeriesRule
from pipeline.data.entries import Entry
from pipeline.data.manifests import parse_manifest
from pipeline.data.subgroups import read_subgroups
from pipeline.errors import ConfigError, Fault, InputError
from pipeline.labels import MEAN, LabelContract, region_faults

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
        labelled: The structures that the manifest says were drawn in the label map; None if it says nothing.
        classes: Names of the classes that the image is of, exactly one unless the job is multi-label; None if
            nothing is known of them.
        row: Array name and row, where `images` is one `.npz` that holds many images.
        series: Per image, which DICOM series of it is meant; empty where no rule is needed.
    """

    id: str
    patient: str
    images: tuple[Path, ...]
    label: Path | None = None
    fold: int | None = None
    labelled: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    row: tuple[str, int] | None = None
    series: tuple[SeriesRule, ...] = ()

    @property
    def sources(self) -> tuple[tuple[Path, SeriesRule], ...]:
        """Every image with the rule for it."""
        return tuple(zip(self.images, self.series or (SeriesRule(),) * len(self.images), strict=True))


@dataclass(frozen=True)
class Study:
    """All cases, and what is declared about them.

    Attributes:
        cases: In the manifest's order.
        contract: What the values of label maps mean.
        channels: Names of the image channels.
    """

    cases: tuple[Case, ...]
    contract: LabelContract
    channels: tuple[str, ...]

    @property
    def labels(self) -> Mapping[str, int]:
        """Value of each label name, background included."""
        return self.contract.labels


def read_manifest(section: DataSection) -> Study:
    """Reads the manifest that a job names: a Decathlon `dataset.json`, an nnU-Net raw folder, or a CSV.

    Raises:
        ConfigError: If the manifest cannot be read as one, or what is said of labels does not fit.
        InputError: If cases are wrong: files missing or unpaired, ids doubled or unsafe. Carries all faults.
    """
    path = section.manifest
    if exists(path) and path.is_dir():
        path = path / "dataset.json"
    manifest = parse_manifest(path)
    read_subgroups(path, section.subgroups)  # what is wrong with them is told before anything is trained
    labels = section.labels if section.labels is not None else manifest.labels
    regions = manifest.regions if section.labels is None and section.regions is None else section.regions
    contract = _build_contract(section, labels or {}, regions, manifest.ignore_value)
    config_faults = [*_label_faults(path, labels), *_contract_faults(contract)]
    case_faults = [*manifest.faults, *entry_faults(manifest.entries)]
    if not config_faults:
        case_faults += _labelled_faults(manifest.entries, contract)
    if not manifest.entries and not case_faults:
        case_faults.append(Fault(str(path), "no-cases", "the manifest names no case"))
    if case_faults:
        raise InputError([*case_faults, *config_faults])
    if config_faults:
        raise ConfigError(config_faults)
    cases = [Case(e.id, e.patient, e.images, e.label, e.fold, e.labelled) for e in manifest.entries]
    chosen, channels = choose_series(cases, manifest.channels, section)
    return Study(chosen, contract, channels)


def choose_series(
    cases: Sequence[Case], channels: tuple[str, ...], section: CasesSection
) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """The cases with what a job says of DICOM series, and the names of their channels.

    Where each case names one folder and the job several series, each series is a channel of that folder.

    Raises:
        ConfigError: If the job names another number of series than the manifest has channels.
    """
    patterns = section.series or (None,)
    if 1 < len(channels) != len(patterns) and section.series:
        message = (
            f"names {len(patterns)} series, the manifest has {len(channels)} channels "
            f"({', '.join(channels)}); name one series for each"
        )
        raise ConfigError(Fault("data.series", "num-channels", message))
    if len(patterns) > 1:
        channels = tuple(section.series or ())
    return apply_rules(cases, [SeriesRule(pattern, section.regularise) for pattern in patterns]), channels


def apply_rules(cases: Sequence[Case], rules: Sequence[SeriesRule]) -> tuple[Case, ...]:
    """The cases with a rule for each image; of one folder and several rules, each is an image of its own."""
    if list(rules) == [SeriesRule()]:
        return tuple(cases)
    return tuple(case if case.row is not None else _apply(case, tuple(rules)) for case in cases)


def _apply(case: Case, rules: tuple[SeriesRule, ...]) -> Case:
    if len(case.images) == 1:
        return replace(case, images=case.images * len(rules), series=rules)
    return replace(case, series=rules if len(rules) > 1 else rules * len(case.images))


def entry_faults(entries: Sequence[Entry]) -> Iterator[Fault]:
    """Faults of ids that are unsafe or doubled, and of files that are missing."""
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


def _label_faults(path: Path, labels: dict[str, int] | None) -> Iterator[Fault]:
    if labels is None:
        message = (
            "the manifest names no labels (regions of nnU-Net need a `regions_class_order`: for each one "
            "value of its own); give data.labels, such as {background: 0, liver: 1}, and data.regions where "
            "there are regions"
        )
        yield Fault(str(path), "missing-labels", message)
        return
    values = set(labels.values())
    if len(values) < len(labels) or min(values, default=1) != 0 or max(values) > 65535:
        yield Fault(str(path), "labels", "each name needs its own value from 0, the background, to 65535")
    elif values == {0}:
        message = "nothing but the background is named; name what is drawn, such as liver: 1"
        yield Fault(str(path), "labels", message)


def _build_contract(
    section: DataSection,
    labels: dict[str, int],
    regions: dict[str, tuple[int, ...]] | None,
    ignore_value: int | None,
) -> LabelContract:
    contract = LabelContract(
        labels,
        regions,
        ignore_value if section.ignore_value is None else section.ignore_value,
        terminology=section.terms,
    )
    doubtful = section.absent_means_unlabelled
    if isinstance(doubtful, bool):
        doubtful = tuple(contract.structures) if doubtful else ()
    return replace(contract, absent_means_unlabelled=doubtful)


def _contract_faults(contract: LabelContract) -> Iterator[Fault]:
    """Faults of what is said about the label values beyond their names."""
    if MEAN in contract.structures:
        message = "no structure can have this name, which tables give the mean over all of them; rename it"
        yield Fault(MEAN, "reserved-name", message)
    declared = set(contract.labels.values()) - {0}
    for name, values in (contract.regions or {}).items():
        if odd := [value for value in values if value not in declared]:
            message = (
                f"a region unites declared label values ({', '.join(map(str, sorted(declared)))}), not {odd}"
            )
            yield Fault(f"data.regions.{name}", "regions", message)
    yield from region_faults(contract.regions or {})
    if contract.ignore_value in contract.labels.values():
        message = (
            f"{contract.ignore_value} is one of the labels; take it out of them, ignored voxels have none"
        )
        yield Fault("data.ignore_value", "ignore-value", message)
    if unknown := _unknown_structures(contract.absent_means_unlabelled, contract):
        yield Fault("data.absent_means_unlabelled", "unknown-structure", unknown)
    if unknown := _unknown_structures(tuple(contract.terminology), contract):
        yield Fault("data.terminology", "unknown-structure", unknown)


def _labelled_faults(entries: Sequence[Entry], contract: LabelContract) -> Iterator[Fault]:
    """Faults of what a manifest says about the structures that were drawn in its cases."""
    for entry in entries:
        if entry.labelled is not None and not entry.labelled:
            message = "nothing is labelled in this case; take it out, or leave `labelled` out if all of it is"
            yield Fault(entry.where, "nothing-labelled", message)
        elif unknown := _unknown_structures(entry.labelled or (), contract):
            yield Fault(entry.where, "unknown-structure", f"labelled: {unknown}")


def _unknown_structures(names: Sequence[str], contract: LabelContract) -> str | None:
    """What is wrong with the names of structures, if anything is."""
    unknown = [name for name in names if name not in contract.structures]
    if not unknown:
        return None
    known = ", ".join(contract.structures)
    return f"there is no structure called {', '.join(map(repr, unknown))[:200]}; the data declare: {known}"
