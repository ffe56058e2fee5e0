"""Where in an image the organ lies that is to be classified, whoever tells it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.case_images import grid_faults
from pipeline.data.cases import Case
from pipeline.data.images import read_label_map
from pipeline.errors import Fault, InputError
from pipeline.volume import Volume


@dataclass(frozen=True)
class Regions:
    """Finds the region of any case.

    Attributes:
        label: Gives a label map of a case, on the grid of its images.
        values: What in it makes up the region; everything but 0 if empty.
        name: Of the region, for people.
        model_hash: Of the model that makes the label maps; None if they are files of the cases.
    """

    label: Callable[[Case, Sequence[Volume]], NDArray[np.generic]]
    values: tuple[int, ...]
    name: str
    model_hash: str | None = None

    def find(self, case: Case, images: Sequence[Volume]) -> NDArray[np.bool_]:
        """`(I, J, K)`, true within the region and somewhere.

        Args:
            case: Whose images they are.
            images: One volume per channel, all on one grid.

        Raises:
            InputError: If the region is not in the image, or the case's label map cannot be used.
        """
        label_map = self.label(case, images)
        region = np.isin(label_map, self.values) if self.values else label_map != 0
        if not region.any():
            finder = "its label map holds" if self.model_hash is None else "the segmentation model found"
            message = f"{finder} no {self.name}, so there is nothing to classify; look at it, or leave it out"
            raise InputError(Fault(case.id, "region-not-found", message))
        return region

    def files(self, case: Case) -> tuple[Path, ...]:
        """The files of the case that tell the region."""
        return () if self.model_hash is not None or case.label is None else (case.label,)


def label_map_regions(values: Sequence[int]) -> Regions:
    """The regions that the cases' own label maps tell, by the values in them; none means all."""
    name = " or ".join(f"value {value}" for value in values) or "structure"
    return Regions(_read_label_map, tuple(values), name)


def _read_label_map(case: Case, images: Sequence[Volume]) -> NDArray[np.generic]:
    if case.label is None:
        message = (
            "a label map tells where to look in it, and none is named; list it in a CSV with the columns "
            "case, image and label"
        )
        raise InputError(Fault(case.id, "missing-label", message))
    label = read_label_map(case.label)
    if faults := list(grid_faults(case, "label map", "", label.grid, images[0].grid)):
        raise InputError(faults)
    return label.array
