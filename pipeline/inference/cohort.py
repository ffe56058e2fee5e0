"""Many cases, one after the other: a broken one costs only itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.cases import Case
from pipeline.data.checks import read_checked_case
from pipeline.errors import Fault, InputError, ResourceError
from pipeline.export.nifti import write_label_map
from pipeline.files import sha256_of
from pipeline.inference.predictor import Prediction, Predictor


@dataclass(frozen=True, slots=True)
class CaseReport:
    """What became of one case.

    Attributes:
        case: Its id.
        mask: File name of the label map, or None if there is none.
        volumes_ml: Millilitres of each structure.
        seconds: From reading to the verified mask.
        num_windows: Windows that the network saw.
        input_hashes: SHA-256 of each input file.
        warnings: What was odd about the input.
        faults: Why there is no mask.
    """

    case: str
    mask: str | None = None
    volumes_ml: dict[str, float] | None = None
    seconds: float = 0.0
    num_windows: int = 0
    input_hashes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


def predict_cohort(
    predictor: Predictor,
    cases: Sequence[Case],
    folder: Path,
    on_case: Callable[[], None] = lambda: None,
) -> list[CaseReport]:
    """Predicts every case and writes `folder/<case>.nii.gz`.

    Args:
        predictor: A trained network.
        cases: What to predict; a label of a case is not looked at.
        folder: Where masks go; made if it is not there.
        on_case: Called after each case.

    Returns:
        One report per case, in their order; a refused case is one with faults.

    Raises:
        ResourceError: If a mask cannot be written; what was finished stays.
    """
    reports = []
    for case in cases:
        try:
            reports.append(_predict_case(predictor, case, folder))
        except InputError as error:
            reports.append(CaseReport(case.id, faults=error.faults))
        except ResourceError as error:
            # A full disk stops the next case as well; a volume too large for memory stops only itself.
            if any(fault.rule != "out-of-memory" for fault in error.faults):
                raise
            reports.append(CaseReport(case.id, faults=error.faults))
        on_case()
    return reports


def _predict_case(predictor: Predictor, case: Case, folder: Path) -> CaseReport:
    start = time.monotonic()
    labels = predictor.contract.labels
    checked = read_checked_case(Case(case.id, case.patient, case.images), labels, predictor.num_channels)
    prediction = predictor.predict(checked.images)
    mask = folder / f"{case.id}.nii.gz"
    write_label_map(mask, prediction.label_map, prediction.grid, labels)
    return CaseReport(
        case=case.id,
        mask=mask.name,
        volumes_ml=_measure(prediction, predictor.contract.structures),
        seconds=round(time.monotonic() - start, 3),
        num_windows=prediction.num_windows,
        input_hashes=tuple(_hash(path) for path in case.images),
        warnings=tuple(str(warning) for warning in checked.warnings),
    )


def _measure(prediction: Prediction, structures: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    counts = np.bincount(prediction.label_map.ravel(order="K"))
    known = {value: int(count) for value, count in enumerate(counts)}
    return {
        name: round(sum(known.get(value, 0) for value in values) * prediction.grid.voxel_ml, 6)
        for name, values in structures.items()
    }


def _hash(path: Path) -> str:
    if not path.is_dir():
        return sha256_of(path)
    # A series is its files, whatever they are called.
    return " ".join(sorted(sha256_of(file) for file in path.iterdir() if file.is_file()))
