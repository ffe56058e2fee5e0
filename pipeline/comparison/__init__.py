"""What several trainings' answers to the same cases say about which is better, and what they do not say.

Trainings that differ in nothing but the seed are one *arm*; every arm is compared with the first. `findings`
has the numbers and `telling` the words. Definitions and sources: `docs/compare.md`.
"""

from pipeline.comparison.findings import (
    Arm,
    Change,
    Comparison,
    Figure,
    Finding,
    Outcome,
    Standing,
    correct,
    find,
    rank_changes,
    stand,
)
from pipeline.comparison.telling import remarks, tell

__all__ = [
    "Arm",
    "Change",
    "Comparison",
    "Figure",
    "Finding",
    "Outcome",
    "Standing",
    "correct",
    "find",
    "rank_changes",
    "remarks",
    "stand",
    "tell",
]
