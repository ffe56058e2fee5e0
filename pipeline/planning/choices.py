"""A choice with its reason, and a job made of choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pipeline.config import SegmentationJob, job_from_mapping, job_to_mapping, segmentation_job

Value_co = TypeVar("Value_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Choice(Generic[Value_co]):
    """The value of one setting as it stands in a config, and why."""

    value: Value_co
    reason: str


Choices = Mapping[str, Choice[object]]
"""By dotted key, such as `training.patch_size`."""


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job of which some settings were chosen; the others have their defaults."""

    choices: Choices

    @property
    def job(self) -> SegmentationJob:
        """The job, validated; paths in it as they were given."""
        return segmentation_job(job_from_mapping(_nested(self._values())))

    @property
    def reasons(self) -> dict[str, str]:
        """Why, by dotted key."""
        return {key: choice.reason for key, choice in self.choices.items()}

    def to_mapping(self, manifest: Path) -> dict[str, object]:
        """Every setting as it shall stand in a config whose manifest lies at `manifest`."""
        values = _nested({**self._values(), "data.manifest": str(manifest)})
        return _laid_over(job_to_mapping(self.job), values)

    def changed(self, choices: Choices) -> PlannedJob:
        """The same with some choices made anew."""
        return PlannedJob({**self.choices, **choices})

    def _values(self) -> dict[str, object]:
        return {key: choice.value for key, choice in self.choices.items()}


def _nested(values: Mapping[str, object]) -> dict[str, object]:
    nested: dict[str, object] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        inner = nested
        for section in sections:
            below = inner.setdefault(section, {})
            assert isinstance(below, dict), "a key names a setting, not a section"
            inner = below
        inner[name] = value
    return nested


def _laid_over(under: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """`under` with the values of `over`, section by section, in the order of `under`."""

    def pick(key: str, below: object) -> object:
        above = over.get(key, below)
        return _laid_over(below, above) if isinstance(below, dict) and isinstance(above, dict) else above

    return {key: pick(key, below) for key, below in under.items()}
