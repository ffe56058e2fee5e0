"""The runs that are compared: read from their folders, refused unless they answered the same, grouped."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from pipeline.comparison import Arm, Change, Outcome
from pipeline.errors import ConfigError, Fault
from pipeline.report.comparison import CaseView, Chart
from pipeline.tracking import STORE, RunFolder, find_run, read_children, read_settings
from pipeline.workflows.runs.models import with_model
from pipeline.workflows.runs.resuming import SWEEP

SEED = "training.seed"
_PLACES = ("data.manifest", "data.cache_dir", "tracking.experiment", "tracking.uri", "tracking.overlays")
"""Settings that say where things lie and what they are called; they change no network."""
_MOST_RUNS = len(ascii_uppercase)
_TOLD_CASES = 5
_UNSET = "–"
_DIRTY = "-dirty"


@dataclass(frozen=True, eq=False)
class Contender:
    """A run as its folder tells of it.

    Attributes:
        run: The run.
        parts: The runs of its folds if it is a cross-validation, else itself.
        settings: Every setting of its job as text, by dotted key.
        data_hash: Hash of the content of all its cases; None if it did not get so far.
        code: Commit of the code that trained it; None if unknown.
        known: Ids of all cases that it trained or validated on.
    """

    run: RunFolder
    parts: tuple[RunFolder, ...]
    settings: Mapping[str, str]
    data_hash: str | None
    code: str | None
    known: frozenset[str]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name


class AbstractAnswers(ABC):
    """What runs of one task answered to their validation cases.

    Attributes:
        truths: By run and case what the run held for true: volumes of references, or classes.
    """

    truths: Mapping[str, Mapping[str, object]]

    @abstractmethod
    def compare(self, arms: Sequence[Arm]) -> Outcome:
        """Measures every run and tests the arms against the first."""

    @abstractmethod
    def draw(
        self, folder: Path, arms: Sequence[Arm], changes: Sequence[Change]
    ) -> tuple[list[Chart], list[CaseView]]:
        """Draws charts of all cases, and those that changed most, into a folder."""


def find_contenders(names: Sequence[str], store: Path = STORE) -> list[Contender]:
    """Reads the runs that a person named; a sweep stands for its best trial.

    Raises:
        ConfigError: If one is unknown or named twice, they are fewer than two, or of different tasks.
    """
    if not 2 <= len(names) <= _MOST_RUNS:
        message = f"a comparison is of 2 to {_MOST_RUNS} runs, not {len(names)}; `clinseg runs` lists them"
        raise ConfigError(Fault("RUN", "number-of-runs", message))
    runs = [with_model(find_run(name, store)) for name in names]
    twice = {run.name for run in runs if sum(run == other for other in runs) > 1}
    faults = [Fault(name, "same-run", "it is named twice; a run is compared with others") for name in twice]
    for run in runs[1:]:
        if run.task != runs[0].task:
            message = f"it is a {run.task}, and {runs[0].name} a {runs[0].task}; compare runs of one task"
            faults.append(Fault(run.name, "other-task", message))
    if faults:
        raise ConfigError(faults)
    return [_read(run) for run in runs]


def check_comparable(contenders: Sequence[Contender], truths: Mapping[str, Mapping[str, object]]) -> None:
    """Refuses runs that did not answer the same questions.

    Args:
        contenders: The runs, the first being what the others are compared with.
        truths: By run and case what the run holds for true: the volume of each structure's reference, or the
            case's classes.

    Raises:
        ConfigError: If a run has no judged case, its cases are not those of the first run, or what is true of
            them is another; with all faults.
    """
    faults = [_no_cases(one) for one in contenders if not truths[one.name]]
    if not faults:
        for other in contenders[1:]:
            faults += _differing(contenders[0], other, truths[contenders[0].name], truths[other.name])
    if faults:
        raise ConfigError(faults)


def group(contenders: Sequence[Contender]) -> tuple[Arm, ...]:
    """Runs that differ in nothing but the seed are one arm; if all do, each is an arm of its own."""
    groups: dict[frozenset[tuple[str, str]], list[str]] = {}
    for one in contenders:
        groups.setdefault(_essence(one), []).append(one.name)
    members = list(groups.values()) if len(groups) > 1 else [[one.name] for one in contenders]
    return tuple(Arm(letter, tuple(names)) for letter, names in zip(ascii_uppercase, members, strict=False))


def differing_settings(contenders: Sequence[Contender], arms: Sequence[Arm]) -> dict[str, tuple[str, ...]]:
    """The settings that are not the same in all runs, with the value of each in the order of the arms."""
    by_name = {one.name: one.settings for one in contenders}
    settings = [by_name[name] for arm in arms for name in arm.runs]
    keys = dict.fromkeys(key for own in settings for key in own)
    values = {key: tuple(own.get(key, _UNSET) for own in settings) for key in keys}
    return {key: own for key, own in values.items() if len(set(own)) > 1}


def tell_doubts(contenders: Sequence[Contender]) -> Iterator[str]:
    """What beside the settings may lie behind a difference, and what could not be checked."""
    if len({_essence(one) for one in contenders}) == 1:
        yield (
            "These runs differ in nothing but the seed: what is found here is the noise of training, not the "
            "effect of a setting."
        )
    if trials := [one.name for one in contenders if _is_trial(one.run)]:
        yield (
            f"{', '.join(trials)}: of a sweep, whose best trial was chosen by these very cases and looks "
            "better than it is."
        )
    codes = {one.name: _shortened(one.code) for one in contenders}
    if len(set(codes.values())) > 1:
        told = ", ".join(f"{name}: {code}" for name, code in codes.items())
        yield f"The code was not the same, which can make a difference as well ({told})."
    elif any(code.endswith(_DIRTY) for code in codes.values()):
        yield f"The code had changes that no commit holds ({codes[contenders[0].name]})."
    others = [one.name for one in contenders[1:] if one.known != contenders[0].known]
    if others:
        yield (
            f"{', '.join(others)} did not train on the same cases as {contenders[0].name}, so that the files "
            "of the common cases could be compared by what is true of them only, not byte by byte."
        )


def _read(run: RunFolder) -> Contender:
    settings, tags = read_settings(run)
    parts = tuple(read_children(run)) or (run,)
    if parts != (run,):
        tags = read_settings(parts[0])[1] | tags
    return Contender(
        run,
        parts,
        settings,
        tags.get("clinseg.data_hash"),
        tags.get("mlflow.source.git.commit"),
        frozenset(case for part in parts for case in _split_cases(part)),
    )


def _is_trial(run: RunFolder) -> bool:
    return run.parent is not None and (run.path.with_name(run.parent) / SWEEP).is_file()


def _split_cases(run: RunFolder) -> list[str]:
    """Ids of the cases that train or validate; none if that is not told."""
    try:
        split = json.loads((run.path / "split.json").read_text(encoding="utf-8"))
        return [str(case) for part in ("training", "validation") for case in split[part]]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _essence(one: Contender) -> frozenset[tuple[str, str]]:
    """What makes it the training that it is, but for the seed."""
    return frozenset(item for item in one.settings.items() if item[0] not in (SEED, *_PLACES))


def _shortened(code: str | None) -> str:
    if code is None:
        return "unknown"
    return code[:8] + (_DIRTY if code.endswith(_DIRTY) else "")


def _no_cases(one: Contender) -> Fault:
    message = (
        "it has no judged cases. If it has not ended, let it end "
        f"(`clinseg train --resume {one.name}`); if it held out nothing (`data.fold: none`), or nothing is "
        "known of what is true of its cases, name another run"
    )
    return Fault(one.name, "no-cases", message)


def _differing(
    first: Contender,
    other: Contender,
    truth: Mapping[str, object],
    other_truth: Mapping[str, object],
) -> Iterator[Fault]:
    lacking, added = truth.keys() - other_truth.keys(), other_truth.keys() - truth.keys()
    if lacking or added:
        sides = (lacking, f"in {first.name}"), (added, "here")
        told = [f"{len(cases)} only {where} ({_listed(cases)})" for cases, where in sides if cases]
        message = (
            f"its validation cases are not those of {first.name}: {' and '.join(told)}, "
            f"{len(truth.keys() & other_truth.keys())} in both. Compare runs of the same fold of the "
            "same patients, on whom alone folds that no manifest gives depend, or of `--fold all`, which "
            "validates every case"
        )
        yield Fault(other.name, "cases-differ", message)
        return
    changed = {case for case in truth if truth[case] != other_truth[case]}
    hashes = {first.data_hash, other.data_hash} - {None}
    if changed:
        message = (
            f"what is true of {len(changed)} cases is not the same as in {first.name} ({_listed(changed)}): "
            "their references were changed between the runs; train or judge both on the same ones"
        )
        yield Fault(other.name, "references-differ", message)
    elif first.known == other.known and len(hashes) > 1:
        message = (
            f"the files of its cases are not those of {first.name}, though the cases have the same names: an "
            "image, a label map, or what is labelled was changed between the runs; train both on the same"
        )
        yield Fault(other.name, "data-differ", message)


def _listed(cases: set[str]) -> str:
    some = sorted(cases)
    more = f" and {len(some) - _TOLD_CASES} more" if len(some) > _TOLD_CASES else ""
    return ", ".join(some[:_TOLD_CASES]) + more
