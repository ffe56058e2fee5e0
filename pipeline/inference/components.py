"""Of which structures only the largest component is kept, decided on cases that no network had seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import read_label_map
from pipeline.inference.evaluation import Structures
from pipeline.metrics import label_map_dice
from transforms.postprocessing import keep_largest_component

_LabelMap = NDArray[np.unsignedinteger]
_Change = Callable[[_LabelMap], _LabelMap]
_Dice = dict[str, float]


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """A case predicted by a network that had not seen it.

    Attributes:
        prediction: Label map.
        reference: What it should be.
        structures: What the two can be compared by.
        ignore_value: What the reference holds where nobody knows; None if nothing.
    """

    prediction: Path
    reference: Path
    structures: Structures
    ignore_value: int | None = None

    def dice(self, prediction: _LabelMap, reference: _LabelMap) -> _Dice:
        """Dice per structure of two label maps, where the reference is known."""
        if self.ignore_value is not None:
            known = reference != self.ignore_value
            prediction, reference = prediction[known], reference[known]
        return label_map_dice(prediction, reference, self.structures)


@dataclass(frozen=True, slots=True)
class Components:
    """What keeping largest components does to out-of-fold predictions.

    Attributes:
        kept: Structures for which it is done, in this order.
        before: Mean Dice over cases of each structure, as predicted.
        after: The same once it is done.
    """

    kept: tuple[str, ...]
    before: dict[str, float]
    after: dict[str, float]


def decide_components(
    cases: Sequence[OutOfFold], candidates: Structures, on_case: Callable[[], None] = lambda: None
) -> Components:
    """Decides about every candidate, after nnU-Net's rule.

    A structure's largest component is kept if this alone raises the mean Dice over all cases and structures,
    and lowers that of no structure. All that are kept must do so together as well, or none is: overlapping
    regions can get in each other's way.

    Args:
        cases: All that were held out, each once.
        candidates: Structures to decide about.
        on_case: Called for each case that is done; each is read twice if anything is kept at all.
    """
    changes = {name: _keep_largest([values]) for name, values in candidates.items()}
    before, alone = _compare(cases, changes, on_case)
    kept = tuple(name for name in candidates if _is_better(before, alone[name]))
    if len(kept) <= 1:
        return Components(kept, before, alone[kept[0]] if kept else before)
    _, together = _compare(cases, {"": _keep_largest([candidates[name] for name in kept])}, on_case)
    is_better = _is_better(before, together[""])
    return Components(kept, before, together[""]) if is_better else Components((), before, before)


def _keep_largest(united: Sequence[tuple[int, ...]]) -> _Change:
    def change(label_map: _LabelMap) -> _LabelMap:
        for values in united:
            label_map = keep_largest_component(label_map, values)
        return label_map

    return change


def _compare(
    cases: Sequence[OutOfFold], changes: Mapping[str, _Change], on_case: Callable[[], None]
) -> tuple[_Dice, dict[str, _Dice]]:
    """Mean Dice per structure of the predictions as they are, and after each of the changes."""
    before: list[_Dice] = []
    after: dict[str, list[_Dice]] = {name: [] for name in changes}
    for case in cases:
        prediction, reference = _read(case.prediction), _read(case.reference)
        before.append(case.dice(prediction, reference))
        for name, change in changes.items():
            changed = change(prediction)
            is_same = changed is prediction
            after[name].append(before[-1] if is_same else case.dice(changed, reference))
        on_case()
    return _average(before), {name: _average(dice) for name, dice in after.items()}


def _read(path: Path) -> _LabelMap:
    return np.asarray(read_label_map(path).array, dtype=np.uint16)


def _average(dice: Sequence[_Dice]) -> _Dice:
    names = dict.fromkeys(name for each in dice for name in each)
    return {name: float(np.mean([each[name] for each in dice if name in each])) for name in names}


def _is_better(before: _Dice, after: _Dice) -> bool:
    rises = float(np.mean([*after.values()])) > float(np.mean([*before.values()]))
    return rises and all(after[name] >= before[name] for name in before)
