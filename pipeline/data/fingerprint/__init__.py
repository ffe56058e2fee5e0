"""What the cases of a study have in common.

`intensities` measures what a normalisation needs of the training cases; `survey` measures what a plan needs
of all cases, and `summary` holds it.
"""

from pipeline.data.fingerprint.intensities import measure_intensities, no_foreground
from pipeline.data.fingerprint.summary import (
    CaseFingerprint,
    ChannelIntensities,
    Fingerprint,
    StructureSize,
)
from pipeline.data.fingerprint.survey import find_labels, survey_study

__all__ = [
    "CaseFingerprint",
    "ChannelIntensities",
    "Fingerprint",
    "StructureSize",
    "find_labels",
    "measure_intensities",
    "no_foreground",
    "survey_study",
]
