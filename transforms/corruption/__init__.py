"""Images made worse with a known truth: graded, seeded, in the image's own units.

A corruption is a frozen dataclass that holds how strong it is, and is called with an image, its spacing and
a seed. `contract` says what all of them take and refuse; `magnitude` (Rician noise, bias field) and
`motion` belong to MR, `low_dose` to CT, `resolution` (blur, thick slices) to both; `levels` has them by
name, in five grades. `docs/corruption.md` has the formulas, their sources and limits.
"""

from __future__ import annotations

from transforms.corruption.contract import Corruption
from transforms.corruption.levels import CORRUPTIONS, corrupt
from transforms.corruption.low_dose import LowDose
from transforms.corruption.magnitude import BiasField, RicianNoise
from transforms.corruption.motion import Motion
from transforms.corruption.resolution import Blur, ThickSlices

__all__ = [
    "CORRUPTIONS",
    "BiasField",
    "Blur",
    "Corruption",
    "LowDose",
    "Motion",
    "RicianNoise",
    "ThickSlices",
    "corrupt",
]
