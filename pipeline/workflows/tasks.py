"""The tasks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.workflows.classification import ClassificationColumn
from pipeline.workflows.columns import Column
from pipeline.workflows.enhancement import EnhancementColumn
from pipeline.workflows.segmentation import SegmentationColumn

COLUMNS: Mapping[str, Column[Any, Any, Any]] = {
    "segmentation": SegmentationColumn(),
    "classification": ClassificationColumn(),
    "enhancement": EnhancementColumn(),
}
