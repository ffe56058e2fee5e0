"""The tasks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.workflows.tasks.classification import ClassificationColumn
from pipeline.workflows.tasks.columns import Column
from pipeline.workflows.tasks.enhancement import EnhancementColumn
from pipeline.workflows.tasks.segmentation import SegmentationColumn

COLUMNS: Mapping[str, Column[Any, Any, Any]] = {
    "segmentation": SegmentationColumn(),
    "classification": ClassificationColumn(),
    "enhancement": EnhancementColumn(),
}
