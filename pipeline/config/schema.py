"""The kinds of job, one per task."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config.classification import ClassificationJob
from pipeline.config.enhancement import EnhancementJob
from pipeline.config.segmentation import SegmentationJob

Job = SegmentationJob | ClassificationJob | EnhancementJob

JOBS: Mapping[str, type[Job]] = {
    "segmentation": SegmentationJob,
    "classification": ClassificationJob,
    "enhancement": EnhancementJob,
}
