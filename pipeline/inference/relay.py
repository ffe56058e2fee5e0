"""Many cases by three hands: while one is computed the next is read and the last written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from pipeline.data.cases import Case
from pipeline.errors import Fault, FaultError
from pipeline.memory import memory_faults

_Loaded = TypeVar("_Loaded")
_Made = TypeVar("_Made")
_Report = TypeVar("_Report")


@dataclass(frozen=True)
class Steps(Generic[_Loaded, _Made, _Report]):
    """What is done with a case.

    Attributes:
        load: Reads it. It runs beside the others, as `write` does.
        make: Computes what is to be written.
        write: Writes it and reports.
        refuse: Reports the faults of a case that could not be read or computed.
    """

    load: Callable[[Case], _Loaded]
    make: Callable[[_Loaded], _Made]
    write: Callable[[_Made], _Report]
    refuse: Callable[[Case, tuple[Fault, ...]], _Report]


def relay(
    steps: Steps[_Loaded, _Made, _Report],
    cases: Sequence[Case],
    on_report: Callable[[_Report], None],
    *,
    is_sequential: bool,
) -> list[_Report]:
    """Works on every case; a broken one harms no other.

    Args:
        steps: What is done with each.
        cases: What to work on.
        on_report: Is told each report as soon as it is there.
        is_sequential: Whether a case is read only when the one before has left memory.

    Returns:
        One report per case, in their order.

    Raises:
        ResourceError: If something cannot be written; what was finished stays.
    """
    reports: list[_Report] = []

    def finish(future: Future[_Report]) -> None:
        reports.append(future.result())
        on_report(reports[-1])

    with ThreadPoolExecutor(max_workers=1) as reader, ThreadPoolExecutor(max_workers=1) as writer:
        unfinished: deque[Future[_Report]] = deque()
        try:
            for case, loading in _read_ahead(reader, steps, cases, num_ahead=0 if is_sequential else 1):
                unfinished.append(_make(writer, steps, case, loading))
                del loading  # the next case is read into the memory that this one leaves
                while len(unfinished) > (0 if is_sequential else 1):
                    finish(unfinished.popleft())
            while unfinished:
                finish(unfinished.popleft())
        except BaseException:
            # Who stops does not wait for a case that has not begun.
            reader.shutdown(wait=False, cancel_futures=True)
            # What is written all the same is told, or a folder would hold what its log does not know.
            with suppress(Exception):
                while unfinished:
                    finish(unfinished.popleft())
            raise
    return reports


def _read_ahead(
    reader: Executor, steps: Steps[_Loaded, _Made, _Report], cases: Sequence[Case], num_ahead: int
) -> Iterator[tuple[Case, Future[_Loaded]]]:
    """Each case with its loading, which began while the case before was computed."""
    started: deque[tuple[Case, Future[_Loaded]]] = deque()
    for case in cases:
        started.append((case, reader.submit(steps.load, case)))
        if len(started) > num_ahead:
            yield started.popleft()
    yield from started


def _make(
    writer: Executor, steps: Steps[_Loaded, _Made, _Report], case: Case, loading: Future[_Loaded]
) -> Future[_Report]:
    """Computes a case and has it written, or tells why not."""
    try:
        with memory_faults(case.id):
            made = steps.make(loading.result())
    except FaultError as error:
        # A full disk stops the next case as well.
        if any(fault.rule in ("disk-full", "not-writable") for fault in error.faults):
            raise
        refused: Future[_Report] = Future()
        refused.set_result(steps.refuse(case, tuple(_named(fault, case) for fault in error.faults)))
        return refused
    finally:
        del loading  # a circle with its own error, which would keep all that was read in memory
    return writer.submit(steps.write, made)


def _named(fault: Fault, case: Case) -> Fault:
    """A fault of the computation, which does not know whose image it has, with the name of the case."""
    return replace(fault, where=case.id) if fault.where in ("prediction", "max-memory") else fault
