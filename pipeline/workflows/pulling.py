"""`clinseg pacs pull`: studies from a PACS, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.data.dicom import match_series
from pipeline.errors import ConfigError, Fault, InputError
from pipeline.files import atomic_folder, check_writable
from pipeline.pacs.address import DEFAULT_AET, check_aet, parse_address, parse_endpoint
from pipeline.pacs.connecting import connect
from pipeline.pacs.instances import FoundSeries, Instance, Pacs, Query, hash_uid, is_uid, write_instance
from pipeline.progress import progress_bar


@dataclass(frozen=True, slots=True)
class PulledStudy:
    """A study that was fetched.

    Attributes:
        folder: Where it lies.
        num_series: Of it that were meant.
        num_instances: In these.
        is_new: Whether it was not there already.
    """

    folder: Path
    num_series: int
    num_instances: int
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class Pulled:
    """What came of it.

    Attributes:
        studies: Those that are there now.
        faults: Why others are not.
    """

    studies: tuple[PulledStudy, ...]
    faults: tuple[Fault, ...]


def pull(
    source: str,
    query: Query,
    folder: Path,
    patterns: Sequence[str] = (),
    aet: str = DEFAULT_AET,
    receive_at: str | None = None,
) -> Pulled:
    """Fetches every study that the query means to `folder/<study>/<series>/<instance>.dcm`.

    The names are hashes of UIDs. A study lies there only when every instance that the PACS announced came; if
    not, it is asked for once more.

    Args:
        source: Address of the PACS.
        query: Which studies.
        folder: Made if it is not there.
        patterns: Which series of them, as `SeriesRule` has it; all where there is none.
        aet: Our title, for a PACS that speaks DIMSE.
        receive_at: `host:port` of ours to which it sends, instead of answering C-GET.

    Raises:
        ConfigError: If an argument cannot be.
        ServiceError: If the PACS cannot be asked.
        ResourceError: If the folder cannot be written.
    """
    pacs = _connect(source, query, aet, receive_at)
    found = pacs.find(query)
    if not found:
        message = "the PACS has no study that fits; check the number, and whether this caller may see it"
        raise InputError(Fault(source, "no-study", message))
    check_writable(folder)
    studies: dict[str, list[FoundSeries]] = {}
    for series in found:
        studies.setdefault(series.study, []).append(series)
    pulled: list[PulledStudy] = []
    faults: list[Fault] = []
    with progress_bar("Fetching studies", len(studies)) as advance:
        for uid, parts in studies.items():
            try:
                pulled.append(pull_study(pacs, folder / hash_uid(uid), _choose(uid, parts, patterns)))
            except InputError as error:
                faults += error.faults
            advance()
    return Pulled(tuple(pulled), tuple(faults))


def _connect(source: str, query: Query, aet: str, receive_at: str | None) -> Pacs:
    address = parse_address(source, "SOURCE")
    if not query.keys:
        message = "say which studies: --study UID, --patient ID or --accession NUMBER"
        raise ConfigError(Fault("pull", "no-query", message))
    if bad := [value for value in query.keys.values() if set(value) & set("*?\\")]:
        message = f"{bad[0]!r} would mean many; name one patient, study or number"
        raise ConfigError(Fault("pull", "wildcard", message))
    if query.study is not None and not is_uid(query.study):
        raise ConfigError(Fault("--study", "no-uid", f"a UID is numbers and dots; not {query.study!r}"))
    endpoint = parse_endpoint(receive_at, "--receive-at") if receive_at is not None else None
    return connect(address, check_aet(aet, "--aet"), endpoint)


def _choose(study: str, series: Sequence[FoundSeries], patterns: Sequence[str]) -> list[FoundSeries]:
    """The series that are meant; each pattern has to mean one."""
    if not patterns:
        return list(series)
    chosen: dict[str, FoundSeries] = {}
    faults = []
    for pattern in patterns:
        found = [one for one in series if one.uid == pattern] or match_series(series, pattern)
        if not found:
            told = "; ".join(f"{one.id} ({one.modality}, {one.description})" for one in series[:8])
            message = f"no series here is {pattern!r}; there are: {told}"
            faults.append(Fault(hash_uid(study), "no-series", message))
        chosen |= {one.uid: one for one in found}
    if faults:
        raise InputError(faults)
    return list(chosen.values())


def pull_study(pacs: Pacs, target: Path, series: Sequence[FoundSeries]) -> PulledStudy:
    """Fetches series of a study into a folder that is there afterwards with all of them, or not at all.

    Raises:
        InputError: If fewer instances came than were announced, something else lies there already, or
            another pull of it is under way.
    """
    # Another one would begin by removing what this one has fetched so far.
    lock = FileLock(target.with_name(f".partial-{target.name}.lock"), timeout=0)
    try:
        with lock:
            try:
                return _pull_study(pacs, target, series)
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        message = "another pull fetches it at this moment; wait until that has ended"
        raise InputError(Fault(str(target), "in-use", message)) from None


def _pull_study(pacs: Pacs, target: Path, series: Sequence[FoundSeries]) -> PulledStudy:
    told = PulledStudy(target, len(series), sum(len(one.instances) for one in series))
    if target.exists():
        announced = [Instance(one.study, one.uid, uid, b"").path for one in series for uid in one.instances]
        if all((target / path).is_file() for path in announced):
            return replace(told, is_new=False)
        message = "it is there already, with other series or instances; move it aside or name another folder"
        raise InputError(Fault(str(target), "exists", message))
    with atomic_folder(target) as temporary:
        for one in series:
            _fetch(pacs, one, temporary)
    return told


def _fetch(pacs: Pacs, series: FoundSeries, folder: Path) -> None:
    """Fetches a series, twice if need be.

    Raises:
        InputError: If fewer instances came than were announced.
    """
    missing = set(series.instances)

    def keep(instance: Instance) -> None:
        if (instance.study, instance.series) == (series.study, series.uid) and instance.uid in missing:
            write_instance(folder, instance)
            missing.discard(instance.uid)

    for _ in range(2):
        if missing:
            pacs.fetch(series, keep)
    if missing:
        message = (
            f"{len(missing)} of {len(series.instances)} announced instances of series {series.id} did not "
            "come, asked for twice; nothing of the study was kept"
        )
        raise InputError(Fault(hash_uid(series.study), "incomplete", message))
