"""A study whose images are to be classified: which cases there are, and what classes they are of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.config import LABEL_MAP, ClassificationDataSection
from pipeline.data.cases import Case, choose_series, entry_faults
from pipeline.data.class_manifests import COLOURS, parse_class_manifest
from pipeline.data.entries import Entry
from pipeline.data.folds import Split
from pipeline.data.images import read_image
from pipeline.data.pictures import is_picture
from pipeline.data.subgroups import read_subgroups
from pipeline.errors import ConfigError, Fault, FaultError, InputError

_MAX_NAME_LENGTH = 100
_NOT_IN_NAMES = ";,/\\"


@dataclass(frozen=True)
class ClassStudy:
    """All cases, and what is declared about them.

    Attributes:
        cases: In the manifest's order; each has `classes`.
        classes: Their names, in the order of the network's outputs.
        channels: Names of the image channels.
        is_multi_label: Whether a case can be of several classes, or of none.
    """

    cases: tuple[Case, ...]
    classes: tuple[str, ...]
    channels: tuple[str, ...]
    is_multi_label: bool


def read_class_study(section: ClassificationDataSection) -> ClassStudy:
    """Reads the manifest that a job names; of the images, only one is looked into, for its channels.

    With `split: given`, what an `.npz` keeps for validation is fold 0, what it trains on fold 1, and a CSV's
    column `fold` counts; with `split: new` no case has a fold.

    Raises:
        ConfigError: If the manifest cannot be read as one, or the classes are not what they should be.
        InputError: If cases are wrong: files missing, ids doubled or unsafe, classes unknown, missing or too
            many. Carries all faults.
    """
    manifest = parse_class_manifest(section)
    read_subgroups(section.manifest, section.subgroups)  # what is wrong with them is told before training
    entries, classes = manifest.entries, manifest.classes
    case_faults = [
        *manifest.faults,
        *entry_faults(entries),
        *class_faults(entries, classes, section.multi_label),
        *(_label_faults(section, entries) if section.region_from == LABEL_MAP else ()),
    ]
    if not entries and not case_faults:
        case_faults.append(Fault(str(section.manifest), "no-cases", "the manifest names no case"))
    config_faults = [*_name_faults(classes, section.multi_label)]
    if not case_faults:
        config_faults += _empty_class_faults(entries, classes)
    if case_faults:
        raise InputError([*case_faults, *config_faults])
    if config_faults:
        raise ConfigError(config_faults)
    keeps_folds = section.split == "given"
    cases = tuple(
        Case(
            id=entry.id,
            patient=entry.patient,
            images=entry.images,
            label=entry.label,
            fold=entry.fold if keeps_folds else None,
            classes=entry.classes,
            row=entry.row,
        )
        for entry in entries
    )
    cases, channels = choose_series(cases, manifest.channels or (), section)
    return ClassStudy(cases, classes, channels or _look_for_channels(cases), section.multi_label)


def check_split(study: ClassStudy, split: Split) -> None:
    """Refuses a split that leaves nothing to learn a class from.

    Raises:
        ConfigError: With every class that no training case is of.
    """
    present = {name for case in split.training for name in case.classes or ()}
    faults = [
        Fault("data.fold", "untrained-class", f"no training case is of class {name}; choose other folds")
        for name in study.classes
        if name not in present
    ]
    if faults:
        raise ConfigError(faults)


def class_faults(entries: Sequence[Entry], classes: Sequence[str], is_multi_label: bool) -> Iterator[Fault]:
    """Faults of what is said about the classes of single cases."""
    known = set(classes)
    for entry in entries:
        named = entry.classes or ()
        if unknown := [name for name in named if name not in known]:
            message = (
                f"there is no class called {', '.join(map(repr, unknown))[:200]}; the classes are "
                f"{', '.join(classes)[:500]}"
            )
            yield Fault(entry.where, "unknown-class", message)
        elif not is_multi_label and not named:
            yield Fault(entry.where, "no-class", "no class is named; name one, or take the case out")
        elif not is_multi_label and len(named) > 1:
            message = f"{len(named)} classes are named; name one, or set data.multi_label: true"
            yield Fault(entry.where, "several-classes", message)


def _label_faults(section: ClassificationDataSection, entries: Sequence[Entry]) -> Iterator[Fault]:
    """Faults of cases without the label map that is to tell the region."""
    without = [entry for entry in entries if entry.label is None]
    if without and len(without) == len(entries):
        message = f"no case of {section.manifest} has a label map; give a CSV with a column label"
        yield Fault("data.region_from", "missing-label", message)
        return
    for entry in without:
        message = "no label map tells where to look in it; name one in the column label, or take the case out"
        yield Fault(entry.where, "missing-label", message)


def _name_faults(classes: Sequence[str], is_multi_label: bool) -> Iterator[Fault]:
    where = "data.classes"
    if len(classes) < (1 if is_multi_label else 2):
        message = f"there is nothing to tell apart: {', '.join(classes) or 'no class'} alone is found"
        yield Fault(where, "too-few-classes", message)
    if len(set(classes)) < len(classes):
        yield Fault(where, "class-name", "a class is named twice; each needs a name of its own")
    for name in classes:
        if (
            not name
            or not name.isprintable()
            or set(name) & set(_NOT_IN_NAMES)
            or len(name) > _MAX_NAME_LENGTH
        ):
            message = (
                f"{name[:60]!r} cannot be the name of a class: 1 to {_MAX_NAME_LENGTH} printable characters, "
                f"none of {' '.join(_NOT_IN_NAMES)}"
            )
            yield Fault(where, "class-name", message)


def _empty_class_faults(entries: Sequence[Entry], classes: Sequence[str]) -> Iterator[Fault]:
    present = {name for entry in entries for name in entry.classes or ()}
    for name in classes:
        if name not in present:
            message = f"no case is of class {name}, so that it cannot be learned; add some, or take it out"
            yield Fault("data.classes", "empty-class", message)


def _look_for_channels(cases: Sequence[Case]) -> tuple[str, ...]:
    """Names of the channels of the first image that can be read; checks tell what is wrong with others."""
    for case in cases:
        try:
            num_channels = len(read_image(*case.sources[0]))
        except FaultError:
            continue
        if num_channels > 1:
            is_coloured = is_picture(case.images[0])
            return COLOURS if is_coloured else tuple(f"channel_{index}" for index in range(num_channels))
        break
    return ("image",)
