"""A registered model as MLflow loads and serves it: the path of `clinseg predict` and `enhance`, row by row.

MLflow finds `_load_pyfunc` by the name of this module, which stands in every registered model: neither may
change. Nothing that lies in a model is run, and its checkpoint is verified like any other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import torch

from pipeline.checkpoint import Checkpoint, read_checkpoint
from pipeline.data.cases import Case
from pipeline.errors import Fault, FaultError, InputError
from pipeline.inference.classifier import load_class_predictor
from pipeline.inference.cohort import predict_cohort
from pipeline.inference.enhancer import load_enhancer
from pipeline.inference.enhancing import enhance_cohort, output_names
from pipeline.inference.predictor import load_predictor, select_device
from pipeline.workflows.applying.served_rows import INPUTS, case_of_row

if TYPE_CHECKING:
    from pandas import DataFrame

LOADER: Final = __name__
_Answer = dict[str, Any]
_Apply = Callable[[Sequence[Case], Path], list[_Answer]]

_TOLD: Final = {"warnings": "texts", "faults": "texts"}
OUTPUTS: Final[Mapping[str, Mapping[str, str]]] = {
    "segmentation": {"mask": "bytes", "volumes_ml": "numbers", **_TOLD},
    "classification": {
        "predicted": "texts",
        "probabilities": "numbers",
        "confidence": "number",
        "review": "flag",
        **_TOLD,
    },
    "enhancement": {"images": "many bytes", "mean_change": "number", "largest_change": "number", **_TOLD},
}
"""Columns of an answer and their kinds, by task; of a row that was refused all but `faults` are missing."""


class ServedModel:
    """A checkpoint that answers requests, one at a time.

    Args:
        checkpoint: Of any task.
        device: Where to compute.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._task = str(checkpoint.job["task"])
        self._num_channels, self._apply = _LOADERS[self._task](checkpoint, device)
        self._lock = Lock()  # a server asks from several threads; side by side they would share memory

    def predict(self, data: DataFrame) -> list[_Answer]:
        """Answers every row; one that is refused costs only itself.

        Args:
            data: Rows as `served_rows.case_of_row` describes them.

        Returns:
            Per row the columns of `OUTPUTS`: `mask` and `images` are whole NIfTI files, gzipped, on the grid
            of the row's image.

        Raises:
            InputError: If the request has none of the columns; MLflow has taken away what it does not know.
        """
        if not len(data.columns):
            message = f"a request has rows with one of {', '.join(INPUTS)}, and this has none of them"
            raise InputError(Fault("request", "request-columns", message))
        rows = data.to_dict("records")
        answers: list[_Answer] = [{}] * len(rows)
        cases: dict[int, Case] = {}
        with tempfile.TemporaryDirectory() as name, self._lock:
            folder = Path(name)
            for number, row in enumerate(rows):
                try:
                    cases[number] = self._case(row, number, folder)
                except FaultError as error:
                    answers[number] = {"faults": [str(fault) for fault in error.faults]}
            made = self._apply(list(cases.values()), folder / "made")
        for number, answer in zip(cases, made, strict=True):
            answers[number] = answer
        return [_without_folder(answer, name) for answer in answers]

    def _case(self, row: Mapping[str, Any], number: int, folder: Path) -> Case:
        return case_of_row(row, number, self._num_channels, folder, classes=self._task == "classification")


def _load_pyfunc(path: str) -> ServedModel:
    """What MLflow calls with the path of the stored checkpoint."""
    return ServedModel(read_checkpoint(Path(path)), select_device("auto"))


def _load_segmentation(checkpoint: Checkpoint, device: torch.device) -> tuple[int, _Apply]:
    predictor = load_predictor(checkpoint, device)

    def apply(cases: Sequence[Case], folder: Path) -> list[_Answer]:
        return [
            {"mask": (folder / report.mask).read_bytes(), "volumes_ml": report.volumes_ml, **_told(report)}
            if report.mask is not None
            else _told(report)
            for report in predict_cohort(predictor, cases, folder)
        ]

    return predictor.num_channels, apply


def _load_classification(checkpoint: Checkpoint, device: torch.device) -> tuple[int, _Apply]:
    predictor = load_class_predictor(checkpoint, device)

    def apply(cases: Sequence[Case], folder: Path) -> list[_Answer]:
        return [
            {
                "predicted": list(report.predicted),
                "probabilities": dict(zip(predictor.classes, report.probabilities, strict=True)),
                "confidence": report.confidence,
                "review": report.review,
                **_told(report),
            }
            if report.probabilities
            else _told(report)
            for report in predictor.classify(cases)
        ]

    return predictor.num_channels, apply


def _load_enhancement(checkpoint: Checkpoint, device: torch.device) -> tuple[int, _Apply]:
    enhancer = load_enhancer(checkpoint, device)
    num_channels = len(enhancer.channels)

    def apply(cases: Sequence[Case], folder: Path) -> list[_Answer]:
        reports = enhance_cohort(enhancer, cases, folder, model=str(checkpoint.content_hash))
        return [
            {
                "images": [
                    (folder / name).read_bytes()
                    for name in output_names(report.case, num_channels)[:num_channels]
                ],
                "mean_change": report.mean_change,
                "largest_change": report.largest_change,
                **_told(report),
            }
            if report.files is not None
            else _told(report)
            for report in reports
        ]

    return num_channels, apply


def _without_folder(answer: _Answer, folder: str) -> _Answer:
    """Names of files that were made for the answer, and are gone, mean no more than their row's number."""
    told = {
        kind: [text.replace(f"{folder}/", "") for text in answer[kind]] for kind in _TOLD if kind in answer
    }
    return answer | told


def _told(report: Any) -> _Answer:  # noqa: ANN401 - of any task
    return {"warnings": list(report.warnings), "faults": [str(fault) for fault in report.faults]}


_LOADERS: Final[Mapping[str, Callable[[Checkpoint, torch.device], tuple[int, _Apply]]]] = {
    "segmentation": _load_segmentation,
    "classification": _load_classification,
    "enhancement": _load_enhancement,
}
