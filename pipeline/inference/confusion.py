"""Which structure was taken for which: voxels marked as one where the reference has another."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Fault, InputError
from pipeline.files import write_text
from pipeline.metrics import joint_counts
from pipeline.sides import left_right_pairs
from pipeline.volume import Volume

_COLUMNS = ("case", "reference", "prediction", "volume_ml", "share")


@dataclass(frozen=True, slots=True)
class Confusion:
    """Part of a structure that was marked as another one, in one case.

    Attributes:
        case: Case id.
        reference: The structure that it is.
        prediction: The structure that it was taken for.
        volume_ml: Of that part.
        share: Of the reference structure's volume.
    """

    case: str
    reference: str
    prediction: str
    volume_ml: float
    share: float


@dataclass(frozen=True, slots=True)
class Mistaken:
    """The same over cases.

    Attributes:
        reference: The structure that it is.
        prediction: The structure that it was taken for.
        num_cases: In which that happened.
        volume_ml: In all of them together.
        largest_share: Of the reference structure's volume, in the case where it was largest.
        is_other_side: Whether the two are left and right of a pair.
    """

    reference: str
    prediction: str
    num_cases: int
    volume_ml: float
    largest_share: float
    is_other_side: bool


def find_confusions(
    case: str,
    prediction: Volume,
    reference: Volume,
    structures: Mapping[str, tuple[int, ...]],
    ignore_value: int | None = None,
) -> list[Confusion]:
    """Every pair of structures without a label value in common of which one was taken for the other.

    Args:
        case: Case id.
        prediction: The predicted label map.
        reference: What it should be, on the same grid.
        structures: Those that were drawn in the reference; what was not drawn is nobody's mistake.
        ignore_value: What the reference holds where nobody knows; such voxels are left out.
    """
    predicted: NDArray[Any] = prediction.array
    drawn: NDArray[Any] = reference.array
    if ignore_value is not None:
        known = drawn != ignore_value
        predicted, drawn = predicted[known], drawn[known]
    values = sorted({value for members in structures.values() for value in members})
    counts = joint_counts(predicted, drawn, values)
    codes = {name: [values.index(value) + 1 for value in members] for name, members in structures.items()}
    found = []
    for true, own in codes.items():
        for taken, other in codes.items():
            num_voxels = 0 if set(own) & set(other) else _count(counts, other, own)
            if num_voxels:
                share = num_voxels / int(counts[:, own].sum())
                found.append(Confusion(case, true, taken, num_voxels * reference.grid.voxel_ml, share))
    return found


def _count(counts: NDArray[np.int64], predicted: Sequence[int], true: Sequence[int]) -> int:
    return int(counts[np.ix_(predicted, true)].sum())


def summarise_confusions(found: Iterable[Confusion], structures: Iterable[str]) -> list[Mistaken]:
    """What was taken for what over all cases: sides first, also those never confused; then by volume.

    Args:
        found: Of each case.
        structures: Names of all structures that were compared.
    """
    by_pair: dict[tuple[str, str], list[Confusion]] = {}
    sides = [pair for one, two in left_right_pairs(structures) for pair in ((one, two), (two, one))]
    for pair in sides:
        by_pair[pair] = []
    for one in found:
        by_pair.setdefault((one.reference, one.prediction), []).append(one)
    told = [
        Mistaken(
            *pair,
            num_cases=len(members),
            volume_ml=sum(one.volume_ml for one in members),
            largest_share=max((one.share for one in members), default=0.0),
            is_other_side=pair in sides,
        )
        for pair, members in by_pair.items()
    ]
    return sorted(told, key=lambda one: (not one.is_other_side, -one.volume_ml))


def write_confusions(path: Path, found: Iterable[Confusion]) -> None:
    """Writes one CSV line per case and pair of structures.

    Raises:
        ResourceError: If the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for one in found:
        writer.writerow((one.case, one.reference, one.prediction, f"{one.volume_ml:.6g}", f"{one.share:.6g}"))
    write_text(path, text.getvalue())


def read_confusions(path: Path) -> list[Confusion]:
    """What `write_confusions` wrote, with the six digits that are in the file.

    Raises:
        InputError: If it cannot be read or is no such table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                Confusion(
                    row["case"],
                    row["reference"],
                    row["prediction"],
                    float(row["volume_ml"]),
                    float(row["share"]),
                )
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        message = "a table of confusions as a training writes it was expected, but it cannot be read"
        raise InputError(Fault(str(path), "table-unreadable", message)) from error
