"""The region that a classifier looks at, found by a segmentation model or told by label maps."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.checkpoint import Checkpoint
from pipeline.config import LABEL_MAP, ClassificationDataSection
from pipeline.data.cases import Case
from pipeline.data.regions import Regions, label_map_regions
from pipeline.errors import ConfigError, Fault
from pipeline.inference.predictor import Predictor, load_predictor
from pipeline.labels import LabelContract
from pipeline.volume import Volume


def build_regions(
    section: ClassificationDataSection, segmenter: Checkpoint | None, num_channels: int, device: torch.device
) -> Regions | None:
    """Where a job looks; None if at the whole image.

    Args:
        section: Says what makes up the region.
        segmenter: The model that finds it; None if none does.
        num_channels: Of the images.
        device: Where the model computes.

    Raises:
        ConfigError: If the model segments nothing, sees other channels, or knows no such structures.
    """
    if section.region_from is None:
        return None
    if section.region_from == LABEL_MAP:
        return label_map_regions([label for label in section.region_labels or () if isinstance(label, int)])
    assert segmenter is not None, "a job that names a model comes with it"
    _check_segmenter(section, segmenter, num_channels)
    predictor = load_predictor(segmenter, device)
    names = tuple(map(str, section.region_labels or predictor.contract.structures))
    structures = predictor.contract.structures
    values = {value for name in names for value in structures[name]}
    return Regions(
        label=_Segmentation(predictor),
        values=tuple(sorted(values)),
        name=" or ".join(names),
        model_hash=segmenter.content_hash,
    )


class _Segmentation:
    """Label maps as `clinseg predict` would write them; one at a time, whoever asks."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._lock = Lock()

    def __call__(self, case: Case, images: Sequence[Volume]) -> NDArray[np.generic]:
        """The label map on the images' grid."""
        with self._lock:
            return self._predictor.predict(self._predictor.prepare(images), images[0].grid).array


def _check_segmenter(section: ClassificationDataSection, segmenter: Checkpoint, num_channels: int) -> None:
    model = section.region_from
    if (task := segmenter.job.get("task", "segmentation")) != "segmentation":
        message = f"{model} is a {task} and finds no region; name a segmentation model, or `{LABEL_MAP}`"
        raise ConfigError(Fault("data.region_from", "other-task", message))
    if len(segmenter.channels) != num_channels:
        message = (
            f"{model} was trained on images of {len(segmenter.channels)} channel(s), these have "
            f"{num_channels}; both need the same"
        )
        raise ConfigError(Fault("data.region_from", "num-channels", message))
    regions = segmenter.job["data"].get("regions")
    known = LabelContract(segmenter.labels, regions).structures
    if unknown := [str(label) for label in section.region_labels or () if label not in known]:
        message = f"{model} knows no {', '.join(unknown)[:200]}; it knows {', '.join(known)[:500]}"
        raise ConfigError(Fault("data.region_labels", "unknown-structure", message))
