"""What mirroring a patient means for labels that have a side."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Laterality:
    """What becomes what when left and right change places.

    Attributes:
        axis: The array axis that runs between them.
        partners: For each label index, or for each output channel of a network, which one it becomes.
    """

    axis: int
    partners: tuple[int, ...]
