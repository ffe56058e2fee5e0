"""Studies as they might come, without files."""

import pytest

from pipeline.data.fingerprint import CaseFingerprint, ChannelIntensities, Fingerprint, StructureSize
from pipeline.labels import LabelContract
from pipeline.planning import Machine

GIB = 2**30


def make_fingerprint(
    *,
    spacings=((1.0, 1.0, 1.0),) * 10,
    shape=(128, 128, 128),
    channel="T1",
    air=0.0,
    thickness=(20.0, 20.0, 20.0),
    ml=10.0,
    labels=None,
    regions=None,
    folds=(),
    num_patients=None,
):
    """A study whose every case has all structures, all of one size, and is full of content."""
    labels = labels or {"background": 0, "organ": 1}
    structures = LabelContract(labels, regions).structures
    size = StructureSize(voxels=1000, ml=ml, thickness_mm=thickness)
    channels = (ChannelIntensities(low=air, middle=air, high=1500.0, mean=100.0, deviation=300.0),)
    cases = tuple(
        CaseFingerprint(
            case=f"case_{number}",
            orientation="LPS",
            shape=shape,
            spacing=spacing,
            content=shape,
            channels=channels,
            structures=dict.fromkeys(structures, size),
        )
        for number, spacing in enumerate(spacings)
    )
    return Fingerprint((channel,), labels, structures, num_patients or len(cases), folds, cases)


@pytest.fixture(scope="session")
def study():
    return make_fingerprint


@pytest.fixture
def laptop():
    return Machine("cpu", "2 CPU cores", 2, 16 * GIB)


@pytest.fixture
def card():
    return Machine("cuda", "a card", 16, 24 * GIB)
