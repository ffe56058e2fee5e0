"""Configs written as text: the job they are read as, or the faults that are found."""

import pytest

from pipeline.config import SegmentationJob, load_job
from pipeline.errors import ConfigError


@pytest.fixture
def load(tmp_path):
    """Loads a text as a config file."""

    def load_text(text: str | bytes, *overrides: str) -> SegmentationJob:
        path = tmp_path / "job.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_job(path, overrides)

    return load_text


@pytest.fixture
def faults(load, tmp_path):
    """The faults of a config text as (place, rule, message), places without the folder."""

    def faults_of(text: str | bytes, *overrides: str) -> list[tuple[str, str, str]]:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return [
            (fault.where.removeprefix(f"{tmp_path}/job.yaml:"), fault.rule, fault.message)
            for fault in caught.value.faults
        ]

    return faults_of
