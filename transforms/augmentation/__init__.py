"""Random changes of training patches, a whole batch at a time on the device it is on.

`drawing` decides what happens to a sample, from its own seed; `spatial` and `intensity` do it, and know no
randomness; `batch` brings them together. `docs/augmentation.md` has the formulas.
"""

from __future__ import annotations

from transforms.augmentation.batch import Augmentation
from transforms.augmentation.drawing import ChannelDraw, Draw
from transforms.augmentation.settings import Settings

__all__ = ["Augmentation", "ChannelDraw", "Draw", "Settings"]
