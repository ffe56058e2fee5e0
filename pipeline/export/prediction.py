"""What an exporter gets: a label map, what its values mean, the series it belongs to and what made it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID, generate_uid

from pipeline.export.dicom_source import Source
from pipeline.labels import LabelContract
from pipeline.volume import Grid, check_grid


@dataclass(frozen=True, slots=True)
class Maker:
    """What made a prediction.

    Attributes:
        name: Of the run or model.
        sha256: Of the checkpoint.
        version: Of this program.
    """

    name: str
    sha256: str
    version: str


@dataclass(frozen=True, eq=False)
class Prediction:
    """What an exporter writes.

    Attributes:
        array: `(I, J, K)` label values on the grid.
        grid: That of the series.
        contract: What the values mean.
        source: The series.
        maker: The model.
        probabilities: NIfTI file `(I, J, K, channel)`, where there is one.
        segmentation: The DICOM Segmentation that was made of it, where there is one.

    Raises:
        InputError: If the grid is none that anything may be written to.
    """

    array: NDArray[np.unsignedinteger]
    grid: Grid
    contract: LabelContract
    source: Source
    maker: Maker
    probabilities: Path | None = None
    segmentation: Path | None = None

    def __post_init__(self) -> None:
        check_grid("what is to be written", self.grid)

    def mask(self, name: str, plane: int) -> NDArray[np.bool_]:
        """Where a structure is in a plane, `(row, column)` as in DICOM."""
        values = self.contract.structures[name]
        shown = self.array[:, :, plane].T
        return shown == values[0] if len(values) == 1 else np.isin(shown, values)

    def uid(self, what: str) -> UID:
        """A UID for something made of this: the same result has the same, so that it arrives only once."""
        content = hashlib.sha256(self.array.tobytes()).hexdigest()
        return generate_uid(
            entropy_srcs=[what, str(self.source.first.SeriesInstanceUID), self.maker.sha256, content]
        )
