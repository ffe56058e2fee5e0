"""Dividing cases into training and validation, by patient and, where they have classes, by class."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import CasesSection
from pipeline.data.cases import Case
from pipeline.errors import ConfigError, Fault, InputError


@dataclass(frozen=True)
class Split:
    """Cases to train on and cases held out; no patient is in both."""

    training: tuple[Case, ...]
    validation: tuple[Case, ...]

    @property
    def names_patients(self) -> bool:
        """Whether any case has a patient of another name; else each case counts as a patient."""
        return any(case.patient != case.id for case in (*self.training, *self.validation))


def split_cases(cases: Sequence[Case], section: CasesSection) -> Split:
    """Holds out the fold that `section.fold` names; both parts keep the order of `cases`.

    Folds that the manifest gives are used as they are: cases of another fold, or of none, train. Otherwise
    `section.num_folds` folds are made by patient, of about equal numbers of cases and, where cases have
    classes, of each class; they depend on the patients alone, not on their order or on a training's seed:
    several seeds are judged by the same cases.

    Raises:
        ConfigError: If there is no such fold or no other, or fewer patients than folds.
        InputError: If the manifest spreads a patient over several folds.
    """
    assert section.fold != "all", "each fold is split by itself"
    if section.fold == "none":
        return Split(tuple(cases), ())
    folds = _fold_patients(cases, section)
    known = _known(folds)
    if section.fold not in known:
        is_given = any(case.fold is not None for case in cases)
        origin = "the manifest gives" if is_given else f"num_folds {section.num_folds} makes"
        message = f"there is no fold {section.fold}; {origin} {', '.join(map(str, known))} (or use none)"
        raise ConfigError(Fault("data.fold", "unknown-fold", message))
    training = tuple(case for case in cases if folds[case.patient] != section.fold)
    if not training:
        message = (
            f"every case is in fold {section.fold}, so that none is left to train on; give the manifest "
            "other folds or none, or set fold: none"
        )
        raise ConfigError(Fault("data.fold", "nothing-to-train", message))
    return Split(training, tuple(case for case in cases if folds[case.patient] == section.fold))


def list_folds(cases: Sequence[Case], section: CasesSection) -> tuple[int, ...]:
    """The folds of a cross-validation, in rising order.

    Raises:
        ConfigError: If there are fewer patients than folds, or the manifest gives less than two folds.
        InputError: If the manifest spreads a patient over several folds.
    """
    folds = _known(_fold_patients(cases, section))
    if len(folds) < 2:
        message = (
            f"a cross-validation takes two folds or more; the manifest gives {folds[0]} alone, name that one"
        )
        raise ConfigError(Fault("data.fold", "too-few-folds", message))
    return folds


def _known(folds: Mapping[str, int | None]) -> tuple[int, ...]:
    return tuple(sorted({fold for fold in folds.values() if fold is not None}))


def _fold_patients(cases: Sequence[Case], section: CasesSection) -> Mapping[str, int | None]:
    is_given = any(case.fold is not None for case in cases)
    return _given_folds(cases) if is_given else _made_folds(cases, section.num_folds)


def _given_folds(cases: Sequence[Case]) -> dict[str, int | None]:
    """Fold of each patient, as the manifest says; None trains in every split."""
    by_patient: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_patient[case.patient].append(case)
    faults = [
        Fault(
            ", ".join(case.id for case in own),
            "patient-in-several-folds",
            f"these cases of one patient are in folds {', '.join(_told(case.fold) for case in own)}, so that "
            "training would see what is validated; give them one fold",
        )
        for own in by_patient.values()
        if len({case.fold for case in own}) > 1
    ]
    if faults:
        raise InputError(faults)
    return {patient: own[0].fold for patient, own in by_patient.items()}


def _told(fold: int | None) -> str:
    return "none" if fold is None else str(fold)


def _made_folds(cases: Sequence[Case], num_folds: int) -> dict[str, int]:
    """Deals patients out, those with most cases first, each to the fold that has the least of what they are.

    That is the fold with the smallest share of the cases of their classes, and of those alike the one with
    the fewest cases. Of patients with equally many cases those of the rarest class come first. So the folds'
    numbers of cases of each class, and of cases, differ by no more than one where every patient has one case
    of one class.
    """
    own: dict[str, Counter[str]] = defaultdict(Counter)
    num_cases: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for case in cases:
        num_cases[case.patient] += 1
        own[case.patient].update(_strata(case))
        totals.update(_strata(case))
    if len(num_cases) < num_folds:
        message = (
            f"{len(num_cases)} patients cannot fill {num_folds} folds; lower num_folds or set fold: none"
        )
        raise ConfigError(Fault("data.num_folds", "too-few-patients", message))

    def turn(patient: str) -> tuple[int, tuple[int, str], str]:
        rarest = min(((totals[name], name) for name in own[patient]), default=(0, ""))
        return -num_cases[patient], rarest, hashlib.sha256(f"0|{patient}".encode()).hexdigest()

    sizes = [0] * num_folds
    counts: list[Counter[str]] = [Counter() for _ in range(num_folds)]
    folds: dict[str, int] = {}
    for patient in sorted(num_cases, key=turn):
        shares = [sum(count[name] * n / totals[name] for name, n in own[patient].items()) for count in counts]
        fold = min(range(num_folds), key=lambda f: (shares[f], sizes[f]))
        folds[patient] = fold
        sizes[fold] += num_cases[patient]
        counts[fold].update(own[patient])
    return folds


def _strata(case: Case) -> tuple[str, ...]:
    """The classes of a case; to be of none of them is one more."""
    return () if case.classes is None else case.classes or ("",)
