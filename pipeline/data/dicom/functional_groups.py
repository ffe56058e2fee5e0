"""Enhanced multi-frame CT and MR: what functional groups say of each frame, in the words of single slices."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom import Dataset

_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
GROUP_TAGS = (_SHARED, _PER_FRAME)
"""Tags to read for these functions."""

_GROUPS = (
    "PixelMeasuresSequence",
    "PlaneOrientationSequence",
    "PlanePositionSequence",
    "PixelValueTransformationSequence",
    "FrameContentSequence",
    "MREchoSequence",
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "TemporalPositionSequence",
    "MRDiffusionSequence",
    "MRTimingAndRelatedParametersSequence",
)
_DIRECTION = "DiffusionGradientDirectionSequence"


def has_functional_groups(dataset: Dataset) -> bool:
    """Whether the frames of a file carry geometry of their own."""
    return all(dataset.get(name) for name in GROUP_TAGS)


def frame_datasets(dataset: Dataset) -> Iterator[Dataset]:
    """A flat data set per frame, with the tags that a file of one slice would have; itself if it is one.

    Raises:
        ValueError: If there are not as many groups as frames.
    """
    if not has_functional_groups(dataset):
        yield dataset
        return
    per_frame = dataset[_PER_FRAME].value
    if len(per_frame) != int(dataset.get("NumberOfFrames") or 1):
        raise ValueError("the functional groups are not as many as the frames")
    shared = dataset[_SHARED].value[0]
    for groups in per_frame:
        flat = Dataset()
        # What a frame says of itself wins over what is said of all; a file's own tags count last.
        for source in (shared, groups):
            for name in _GROUPS:
                for item in source.get(name) or ():
                    flat.update(item)
                    for direction in item.get(_DIRECTION) or ():
                        flat.update(direction)
        yield flat
