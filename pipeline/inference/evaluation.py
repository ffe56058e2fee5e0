"""Predicted label maps against references, case by case: what was measured, and what could not be."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.images import read_label_map
from pipeline.errors import Fault, FaultError, InputError
from pipeline.inference.confusion import Confusion, find_confusions
from pipeline.inference.metric_table import CaseMetrics
from pipeline.inference.pairing import Pair, pair_up
from pipeline.labels import LabelContract
from pipeline.metrics import structure_mask, structure_metrics
from pipeline.volume import Grid, Volume

Structures = Mapping[str, tuple[int, ...]]
"""Label values whose union is the structure, by name."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of comparing predictions with references.

    Attributes:
        rows: Every evaluated case, each with every structure.
        faults: Why cases are missing from the rows.
        warnings: What was evaluated in part only: labels that belong to no structure.
        confusions: Which structure was taken for which, of every evaluated case.
    """

    rows: list[CaseMetrics]
    faults: list[Fault]
    warnings: list[Fault]
    confusions: list[Confusion]


def evaluate_case(
    case: str,
    prediction: Volume,
    reference: Volume,
    structures: Structures,
    ignore_value: int | None = None,
) -> list[CaseMetrics]:
    """Compares two label maps of one case, structure by structure.

    Args:
        case: Case id.
        prediction: The predicted label map.
        reference: What it should be.
        structures: What is compared.
        ignore_value: Where the reference holds it, a voxel belongs to no structure of either map.

    Raises:
        InputError: If they do not lie on the same grid.
    """
    grids = prediction.grid, reference.grid
    if not grids[0].is_close_but_for_rounding(grids[1]):
        here, there = map(_describe, grids)
        message = (
            f"the prediction and its reference lie on different grids: {here} against {there}; "
            "resample one to the other's grid with nearest-neighbour interpolation"
        )
        raise InputError(Fault(case, "grid-mismatch", message))
    predicted, true = prediction.array, reference.array
    if ignore_value is not None:
        is_known = true != ignore_value
        predicted, true = np.where(is_known, predicted, 0), np.where(is_known, true, 0)
    return [
        CaseMetrics(
            case,
            name,
            structure_metrics(
                structure_mask(predicted, values), structure_mask(true, values), reference.grid.spacing
            ),
        )
        for name, values in structures.items()
    ]


def evaluate_folders(
    predictions: Path,
    references: Path,
    structures: Structures | None = None,
    on_case: Callable[[str, int], None] | None = None,
    *,
    ignore_value: int | None = None,
    labelled: Callable[[str, Collection[int]], Structures] | None = None,
) -> Evaluation:
    """Compares every `<case>.nii.gz` or `<case>.nii` of a folder with the file of that case in another.

    What is wrong with one case is a fault of the result, and the other cases go on.

    Args:
        predictions: Folder of predicted label maps, or one file.
        references: Folder of reference label maps, or one file.
        structures: What is compared. If None, the `structures` or `labels` in `report.json` beside the
            predictions; without that file every label value but 0 found in any map, named by its number.
        on_case: Is told each case when it is done, and the number of cases.
        ignore_value: What references hold where nobody knows. A structure of this value alone is left out.
        labelled: Tells, of a case and the values that its reference holds, which structures are compared in
            it; None for all of them.

    Raises:
        InputError: If a path does not exist or holds no label maps, one is a file and the other a folder, or
            `report.json` cannot be understood.
    """
    pairs, faults = pair_up(predictions, references)
    structures = structures or _reported_structures(predictions) or _found_structures(pairs)
    structures = {name: values for name, values in structures.items() if set(values) != {ignore_value}}
    known = {value for values in structures.values() for value in values} | {0}
    ignored = set() if ignore_value is None else {ignore_value}
    rows: list[CaseMetrics] = []
    confusions: list[Confusion] = []
    strays: dict[tuple[str, int], list[str]] = {}
    for pair in pairs:
        try:
            prediction, reference = _read(pair)
            compared = structures if labelled is None else labelled(pair.case, _label_values(reference))
            rows += evaluate_case(pair.case, prediction, reference, compared, ignore_value)
            confusions += find_confusions(pair.case, prediction, reference, compared, ignore_value)
        except FaultError as error:
            faults += [Fault(pair.case, fault.rule, fault.message) for fault in error.faults]
        else:
            for side, strange in (
                ("prediction", _label_values(prediction) - known),
                ("reference", _label_values(reference) - known - ignored),
            ):
                for value in strange:
                    strays.setdefault((side, value), []).append(pair.case)
        if on_case is not None:
            on_case(pair.case, len(pairs))
    warnings = [_stray_warning(*stray, cases) for stray, cases in sorted(strays.items())]
    return Evaluation(rows, faults, warnings, confusions)


def _read(pair: Pair) -> tuple[Volume, Volume]:
    return read_label_map(pair.prediction), read_label_map(pair.reference)


def _reported_structures(predictions: Path) -> dict[str, tuple[int, ...]]:
    """What the prediction says of its own labels; empty if it says nothing."""
    path = (predictions if predictions.is_dir() else predictions.parent) / "report.json"
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if regions := report.get("structures"):
            return {name: tuple(map(operator.index, values)) for name, values in regions.items()}
        labels = report.get("labels", {})
        return LabelContract({name: operator.index(value) for name, value in labels.items()}).structures
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        message = (
            "expected JSON with `labels` (names and values) or `structures` (names and lists of values), "
            "but it cannot be understood; mend or remove it"
        )
        raise InputError(Fault(str(path), "report-unreadable", message)) from error


def _found_structures(pairs: Iterable[Pair]) -> dict[str, tuple[int, ...]]:
    values: set[int] = set()
    for pair in pairs:
        with suppress(FaultError):  # said when the case is evaluated
            values |= set().union(*map(_label_values, _read(pair)))
    return {str(value): (value,) for value in sorted(values)}


def _label_values(label_map: Volume) -> set[int]:
    return set(np.unique(label_map.array[label_map.array != 0]).tolist())


def _stray_warning(side: str, value: int, cases: Sequence[str]) -> Fault:
    more = f" and {len(cases) - 3} more" if len(cases) > 3 else ""
    message = (
        f"label {value} in the {side} of {', '.join(cases[:3])}{more} belongs to no structure, "
        "so no metric speaks of it; add it to the structures if it matters"
    )
    return Fault(f"label {value}", "label-unknown", message)


def _describe(grid: Grid) -> str:
    shape = " × ".join(map(str, grid.shape))
    spacing = " × ".join(f"{mm:.4g}" for mm in grid.spacing)
    origin = ", ".join(f"{mm:.2f}" for mm in grid.affine[:3, 3])
    return f"{shape} voxels of {spacing} mm, axes {grid.orientation}, origin ({origin}) mm"
