"""A study for enhancement: which images are to be enhanced, and which show what they should look like."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import EnhancementDataSection, EnhancementTrainingSection
from pipeline.data.cases import Case, choose_series, entry_faults, exists
from pipeline.data.class_folders import find_images, name_images
from pipeline.data.entries import Entry, Manifest
from pipeline.data.folds import Split, split_cases
from pipeline.data.manifests import parse_manifest
from pipeline.errors import ConfigError, Fault, InputError


@dataclass(frozen=True)
class EnhancementStudy:
    """All cases of a job.

    Attributes:
        sources: What is to be enhanced; where a corruption makes it, the good images.
        targets: What shows how it should look; empty where a corruption makes the sources.
        channels: Names of the image channels, of both.
    """

    sources: tuple[Case, ...]
    targets: tuple[Case, ...]
    channels: tuple[str, ...]

    @property
    def cases(self) -> tuple[Case, ...]:
        """All of them, sources first; where there are both, of the class of what they are, for even folds."""
        if not self.targets:
            return self.sources
        roles = (("source", self.sources), ("target", self.targets))
        return tuple(replace(case, classes=(role,)) for role, cases in roles for case in cases)


@dataclass(frozen=True)
class EnhancementSplit:
    """Who is what in a training.

    Attributes:
        sources: To train on.
        targets: To train on; of the same ids as the sources where the truth of each is learnt from.
        validation: Sources held out.
    """

    sources: tuple[Case, ...]
    targets: tuple[Case, ...]
    validation: tuple[Case, ...]


def read_enhancement_study(section: EnhancementDataSection) -> EnhancementStudy:
    """Reads the manifests that a job names; their images are not looked into.

    Raises:
        ConfigError: If one cannot be read, or they have different numbers of channels.
        InputError: If cases are wrong: files missing, ids doubled or unsafe, a source and its truth of
            different patients. Carries all faults.
    """
    manifest = _parse(section.manifest)
    target = _parse(section.target) if section.target is not None else None
    faults = [*_faults(section.manifest, manifest)]
    if target is not None and section.target is not None:
        faults += _faults(section.target, target)
    if faults:
        raise InputError(faults)
    if target is not None and len(target.channels) != len(manifest.channels):
        message = (
            f"its images have {len(target.channels)} channels ({', '.join(target.channels)}), those of the "
            f"manifest {len(manifest.channels)} ({', '.join(manifest.channels)}); give both the same"
        )
        raise ConfigError(Fault("data.target", "num-channels", message))
    targets = _cases(target.entries) if target is not None else ()
    if faults := [*_patient_faults(_cases(manifest.entries), targets)]:
        raise InputError(faults)
    sources, channels = choose_series(_cases(manifest.entries), manifest.channels, section)
    return EnhancementStudy(sources, choose_series(targets, manifest.channels, section)[0], channels)


def split_enhancement(
    study: EnhancementStudy, section: EnhancementDataSection, training: EnhancementTrainingSection
) -> EnhancementSplit:
    """Holds out a fold of patients; no patient of it is among sources or targets that are trained on.

    Without targets of their own, an unpaired training takes half of its patients as sources and the others as
    targets: none is in both, so that no pair can be learnt from.

    Raises:
        ConfigError: If there is no such fold, too few patients, or no truth where one is needed.
        InputError: If the manifest spreads a patient over several folds.
    """
    return assign_roles(study, split_cases(study.cases, section), section, training)


def assign_roles(
    study: EnhancementStudy,
    split: Split,
    section: EnhancementDataSection,
    training: EnhancementTrainingSection,
) -> EnhancementSplit:
    """Who of those that train are sources and targets; see `split_enhancement`.

    Raises:
        ConfigError: If there are too few patients, or no truth where one is needed.
    """
    is_paired = training.method == "supervised"
    if section.corruption is None:
        # By patient: an image that both manifests name is a case of both.
        left_out = {case.patient for case in split.validation}
        sources = [case for case in study.sources if case.patient not in left_out]
        targets = [case for case in study.targets if case.patient not in left_out]
        held_out = [case for case in study.sources if case.patient in left_out]
        if is_paired:
            sources, targets = _pair(sources, targets)
    elif is_paired:
        sources = targets = list(split.training)
        held_out = list(split.validation)
    else:
        chosen = _half(split.training, training.seed)
        sources = [case for case in split.training if case.patient in chosen]
        targets = [case for case in split.training if case.patient not in chosen]
        held_out = list(split.validation)
    if not sources or not targets:
        message = (
            f"{len(sources)} sources and {len(targets)} targets are left to train on, as the fold holds out "
            f"{len(split.validation)} of {len(study.cases)} cases; give more patients, "
            "set another data.num_folds, or say in a column `fold` of both manifests who is held out"
        )
        raise ConfigError(Fault("data", "too-few-patients", message))
    return EnhancementSplit(tuple(sources), tuple(targets), tuple(held_out))


def find_truths(study: EnhancementStudy, section: EnhancementDataSection) -> dict[str, Case]:
    """The case that shows the truth of a source, by the source's id: itself where a corruption makes it."""
    cases = study.sources if section.corruption is not None else study.targets
    known = {case.id: case for case in cases}
    return {case.id: known[case.id] for case in study.sources if case.id in known}


def as_split(split: EnhancementSplit) -> Split:
    """All that is trained on, and all that is held out."""
    return Split(tuple(dict.fromkeys((*split.sources, *split.targets))), split.validation)


def _half(cases: Sequence[Case], seed: int) -> set[str]:
    """Half of the patients, whatever their order."""
    patients = {case.patient for case in cases}

    def turn(patient: str) -> str:
        return hashlib.sha256(f"{seed}|source|{patient}".encode()).hexdigest()

    return set(sorted(patients, key=turn)[: len(patients) // 2])


def _pair(sources: Sequence[Case], targets: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """The sources whose truth there is, and that truth."""
    known = {case.id: case for case in targets}
    if lonely := [case.id for case in sources if case.id not in known]:
        message = (
            f"method supervised needs a target of the same id for every source; {len(lonely)} have none: "
            f"{', '.join(lonely[:5])}; add them, or train a cyclegan"
        )
        raise ConfigError(Fault("data.target", "unpaired", message))
    return list(sources), [known[case.id] for case in sources]


def _parse(path: Path) -> Manifest:
    if exists(path) and path.is_dir() and not exists(path / "dataset.json"):
        return _list_folder(path)
    return parse_manifest(path / "dataset.json" if exists(path) and path.is_dir() else path)


def _list_folder(folder: Path) -> Manifest:
    """A folder of NIfTI files, pictures or DICOM series, each a case of one channel."""
    named = name_images(find_images(folder, 0))
    entries = [Entry(str(image), name, name, (image,), None, None) for name, image in named]
    return Manifest(("image",), entries=entries)


def _faults(path: Path, manifest: Manifest) -> Iterable[Fault]:
    # Of what is said of labels nothing counts here, and a label map that is missing is not missed.
    entries = [replace(entry, label=None) for entry in manifest.entries]
    yield from manifest.faults
    yield from entry_faults(entries)
    if not entries and not manifest.faults:
        yield Fault(str(path), "no-cases", "it names no image; name a folder with images, or a manifest")


def _patient_faults(sources: Sequence[Case], targets: Sequence[Case]) -> Iterable[Fault]:
    """Of targets that are a source's truth and said to be of somebody else, who could be in another fold."""
    patients = {case.id: case.patient for case in sources}
    for case in targets:
        if patients.get(case.id, case.patient) != case.patient:
            message = (
                f"the source of this id is of patient {patients[case.id]}, the target of {case.patient}; "
                "what has one id shows one patient: mend one, or give the target another id"
            )
            yield Fault(case.id, "patients-differ", message)


def _cases(entries: Sequence[Entry]) -> tuple[Case, ...]:
    return tuple(Case(entry.id, entry.patient, entry.images, fold=entry.fold) for entry in entries)
