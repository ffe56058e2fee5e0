"""What a machine can afford: voxels per training step, from its time and its memory, and a width to match."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

NUM_STEPS = 3000
"""Steps that a training should come to in float32."""

_TRAINING_SHARE = 0.9  # of the budget; the rest is for validation
_MEMORY_SHARE = 0.5  # of what is free, for one step
_SMALLEST_STEP = 2 * 16**3
_LARGEST_PATCH = 128**3  # nnU-Net's, for 8 GB
# Voxels that are trained on per second. CPU: measured on x86 cores of 2020s at the widths below, in float32
# with AVX2 and in bfloat16 with AMX. GPU: a cautious guess for current cards with tensor cores; the probe
# tells.
_VOXELS_PER_CORE_SECOND, _IN_BFLOAT16, _MOST_CORES = 175_000, 330_000, 16
_VOXELS_PER_GPU_SECOND = 8_000_000
# Peak of a step per voxel and feature of the finest level: 100 in float32 was measured, 16 bits take half.
_BYTES_PER_FEATURE = {"cpu": 120, "cuda": 60}
_WIDTHS = {"cpu": (16, 32, 64, 96), "cuda": (32, 64, 128, 256, 320, 320)}
_LARGEST_BATCH = {"cpu": 4, "cuda": 16}


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the job will be trained.

    Attributes:
        device: Kind of device.
        name: Of the device, for people.
        num_cores: Of the processor, as far as this program may use them.
        free_memory: Bytes of the device that nobody uses.
        learns_in_bfloat16: Whether the processor learns in bfloat16 (`pipeline.precision`).
    """

    device: Literal["cpu", "cuda"]
    name: str
    num_cores: int
    free_memory: int
    learns_in_bfloat16: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        """Features per level, for as many levels as it can afford."""
        return _WIDTHS[self.device]

    @property
    def largest_batch(self) -> int:
        """More samples of small images than this bring less than more steps do."""
        return _LARGEST_BATCH[self.device]

    @property
    def largest_patch(self) -> int:
        """Voxels."""
        return _LARGEST_PATCH

    @property
    def voxels_per_second(self) -> int:
        """Voxels, over all samples, that are trained on in a second."""
        if self.device == "cuda":
            return _VOXELS_PER_GPU_SECOND
        of_one = _IN_BFLOAT16 if self.learns_in_bfloat16 else _VOXELS_PER_CORE_SECOND
        return of_one * min(self.num_cores, _MOST_CORES)

    def bytes_of_step(self, num_voxels: float) -> float:
        """About what a step on that many voxels takes at its peak."""
        return num_voxels * self.widths[0] * _BYTES_PER_FEATURE[self.device]

    def affordable_voxels(self, minutes: float) -> int:
        """Voxels of all samples of a step: `NUM_STEPS` fit into the minutes, and each into memory.

        What bfloat16 saves goes into more steps, not into larger ones.
        """
        by_memory = self.free_memory * _MEMORY_SHARE / self.bytes_of_step(1)
        by_time = replace(self, learns_in_bfloat16=False)._trained_voxels(minutes) / NUM_STEPS
        return max(_SMALLEST_STEP, int(min(by_time, by_memory)))

    def expected_steps(self, minutes: float, num_voxels: int) -> int:
        """Steps of so many voxels that fit into the minutes."""
        return max(1, round(self._trained_voxels(minutes) / num_voxels))

    def _trained_voxels(self, minutes: float) -> float:
        return self.voxels_per_second * 60 * minutes * _TRAINING_SHARE
