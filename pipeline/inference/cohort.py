"""Many cases: while one is predicted the next is read and the last written; a broken one harms no other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.cases import Case
from pipeline.data.checks import read_checked_case
from pipeline.errors import Fault, FaultError, ResourceError
from pipeline.export.nifti import write_label_map
from pipeline.export.probabilities import write_probabilities
from pipeline.files import sha256_of
from pipeline.inference.budget import Plan
from pipeline.inference.labelling import LabelMap
from pipeline.inference.predictor import Predictor
from pipeline.memory import format_size, resident_bytes
from pipeline.volume import Grid
from transforms.preprocessing import Prepared


@dataclass(frozen=True, slots=True)
class CaseReport:
    """What became of one case.

    Attributes:
        case: Its id.
        mask: File name of the label map, or None if there is none.
        mask_hash: SHA-256 of that file.
        volumes_ml: Millilitres of each structure.
        seconds: Of work on it, from reading to the verified mask.
        num_windows: Windows that were blended, mirrored copies not counted.
        num_skipped: Of these, how many were empty and needed no forward pass.
        plan: How the volume was cut.
        input_hashes: SHA-256 of each input file.
        warnings: What was odd about the input.
        faults: Why there is no mask.
    """

    case: str
    mask: str | None = None
    mask_hash: str | None = None
    volumes_ml: dict[str, float] | None = None
    seconds: float = 0.0
    num_windows: int = 0
    num_skipped: int = 0
    plan: str | None = None
    input_hashes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A case that was read and brought to the network's grid."""

    prepared: Prepared
    grid: Grid
    report: CaseReport


def predict_cohort(
    predictor: Predictor,
    cases: Sequence[Case],
    folder: Path,
    on_case: Callable[[CaseReport], None] = lambda report: None,
    on_plan: Callable[[str, Plan], None] = lambda case, plan: None,
    *,
    with_probabilities: bool = False,
) -> list[CaseReport]:
    """Predicts every case and writes `folder/<case>.nii.gz`.

    Under a memory budget a case is read only when the one before has left memory.

    Args:
        predictor: A trained network.
        cases: What to predict; a label of a case is not looked at.
        folder: Where masks go; made if it is not there.
        on_case: Is told each report as soon as its mask is on disk.
        on_plan: Is told each case's plan before its first window.
        with_probabilities: Whether to write `folder/probabilities/<case>.nii` as well.

    Returns:
        One report per case, in their order; a refused case is one with faults.

    Raises:
        ResourceError: If a mask cannot be written; what was finished stays.
    """
    reports: list[CaseReport] = []
    is_sequential = predictor.max_memory is not None
    with ThreadPoolExecutor(max_workers=1) as reader, ThreadPoolExecutor(max_workers=1) as writer:
        unfinished: deque[Future[CaseReport]] = deque()
        try:
            for case, loading in _read_ahead(reader, predictor, cases, num_ahead=0 if is_sequential else 1):
                probabilities = probabilities_path(folder, case.id) if with_probabilities else None
                predicted = _predict(predictor, case, loading, probabilities, on_plan)
                unfinished.append(_write_beside(writer, predictor, predicted, folder))
                # The next case is read into the memory that this one leaves.
                del loading, predicted
                while len(unfinished) > (0 if is_sequential else 1):
                    _finish(unfinished, reports, on_case)
            while unfinished:
                _finish(unfinished, reports, on_case)
        except BaseException:
            # Who stops does not wait for a case that has not begun.
            reader.shutdown(wait=False, cancel_futures=True)
            raise
    return reports


def _read_ahead(
    reader: Executor, predictor: Predictor, cases: Sequence[Case], num_ahead: int
) -> Iterator[tuple[Case, Future[_Loaded]]]:
    """Each case with its loading, which began while the case before was predicted."""
    started: deque[tuple[Case, Future[_Loaded]]] = deque()
    for case in cases:
        started.append((case, reader.submit(_load, predictor, case)))
        if len(started) > num_ahead:
            yield started.popleft()
    yield from started


@dataclass(frozen=True, eq=False)
class _Predicted:
    """A case whose mask is to be written."""

    label_map: LabelMap
    grid: Grid
    report: CaseReport


def _predict(
    predictor: Predictor,
    case: Case,
    loading: Future[_Loaded],
    probabilities: Path | None,
    on_plan: Callable[[str, Plan], None],
) -> _Predicted | CaseReport:
    """Predicts a case, or tells why not."""
    try:
        return _label(predictor, loading.result(), probabilities, on_plan)
    except FaultError as error:
        # A full disk stops the next case as well.
        if any(fault.rule in ("disk-full", "not-writable") for fault in error.faults):
            raise
        return CaseReport(case.id, faults=error.faults)


def _write_beside(
    writer: Executor, predictor: Predictor, predicted: _Predicted | CaseReport, folder: Path
) -> Future[CaseReport]:
    if isinstance(predicted, _Predicted):
        return writer.submit(_write, predictor, predicted, folder)
    refused: Future[CaseReport] = Future()
    refused.set_result(predicted)
    return refused


def _finish(
    unfinished: deque[Future[CaseReport]],
    reports: list[CaseReport],
    on_case: Callable[[CaseReport], None],
) -> None:
    reports.append(unfinished.popleft().result())
    on_case(reports[-1])


def _load(predictor: Predictor, case: Case) -> _Loaded:
    start = time.monotonic()
    image_only = Case(case.id, case.patient, case.images)
    checked = read_checked_case(image_only, predictor.contract, predictor.num_channels)
    report = CaseReport(
        case=case.id,
        input_hashes=hash_inputs(case),
        warnings=tuple(str(warning) for warning in checked.warnings),
    )
    _check_preparing(predictor, case, checked.images[0].grid)
    prepared = predictor.prepare(checked.images)
    return _Loaded(prepared, checked.images[0].grid, replace(report, seconds=time.monotonic() - start))


def _check_preparing(predictor: Predictor, case: Case, grid: Grid) -> None:
    """Refuses an image that cannot even be brought to the network's grid within the budget."""
    needed = resident_bytes() + predictor.preparing_bytes(grid)
    if predictor.max_memory is not None and needed > predictor.max_memory:
        message = (
            f"it cannot be prepared within {format_size(predictor.max_memory)}; the least that would do is "
            f"{format_size(needed)}"
        )
        raise ResourceError(Fault(case.id, "budget-too-small", message))


def _label(
    predictor: Predictor,
    loaded: _Loaded,
    probabilities: Path | None,
    on_plan: Callable[[str, Plan], None],
) -> _Predicted:
    start, case = time.monotonic(), loaded.report.case

    def tell(plan: Plan) -> None:
        on_plan(case, plan)

    if probabilities is None:
        label_map = predictor.predict(loaded.prepared, loaded.grid, tell)
    else:
        with write_probabilities(probabilities, loaded.grid, predictor.contract.channel_names) as file:
            label_map = predictor.predict(loaded.prepared, loaded.grid, tell, file.put)
    report = replace(
        loaded.report,
        num_windows=label_map.plan.num_windows,
        num_skipped=label_map.num_skipped,
        plan=str(label_map.plan),
        seconds=loaded.report.seconds + time.monotonic() - start,
    )
    return _Predicted(label_map, loaded.grid, report)


def _write(predictor: Predictor, predicted: _Predicted, folder: Path) -> CaseReport:
    start, report = time.monotonic(), predicted.report
    mask = folder / f"{report.case}.nii.gz"
    write_label_map(mask, predicted.label_map.array, predicted.grid, predictor.contract.labels)
    volumes = _measure(predicted.label_map.array, predicted.grid, predictor.contract.structures)
    return replace(
        report,
        mask=mask.name,
        mask_hash=sha256_of(mask),
        volumes_ml=volumes,
        seconds=round(report.seconds + time.monotonic() - start, 3),
    )


def _measure(
    array: NDArray[np.unsignedinteger], grid: Grid, structures: Mapping[str, tuple[int, ...]]
) -> dict[str, float]:
    counts = np.zeros(np.iinfo(array.dtype).max + 1, dtype=np.int64)
    for k in range(array.shape[2]):  # bincount widens to 64 bits: one slice at a time
        counts += np.bincount(array[:, :, k].ravel(order="K"), minlength=len(counts))
    return {
        name: round(float(counts[list(values)].sum()) * grid.voxel_ml, 6)
        for name, values in structures.items()
    }


def probabilities_path(folder: Path, case: str) -> Path:
    """Where the probabilities of a case lie beside its mask in `folder`."""
    return folder / f"probabilities/{case}.nii"


def hash_inputs(case: Case) -> tuple[str, ...]:
    """SHA-256 of each image; of a series those of its files, whatever they are called."""
    return tuple(
        " ".join(sorted(sha256_of(file) for file in path.iterdir() if file.is_file()))
        if path.is_dir()
        else sha256_of(path)
        for path in case.images
    )
