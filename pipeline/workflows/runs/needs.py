"""What a training needs of memory and disk, found out before it starts."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline.errors import Fault, ResourceError
from pipeline.memory import (
    UnmeasurableError,
    available_bytes,
    format_size,
    measure_peak,
    memory_faults,
    resident_bytes,
)
from pipeline.training.loop import Sampler
from pipeline.training.task import AbstractTask

# In sizes of the weights: the last state (weights, their average, two moments, weights for predicting) and
# the best weights, each twice while a new file takes the place of the old one, and the copy MLflow keeps.
_CHECKPOINT_SIZES = 13
_MOMENTS = 2
_ADVICE = "lower training.batch_size or training.patch_size (of a classifier, preprocessing.size)"


@dataclass(frozen=True, slots=True)
class Need:
    """What a training takes of one thing.

    Attributes:
        what: `memory` (of the whole process), `GPU memory` or `disk`.
        num_bytes: At its peak; None if the system does not tell.
        available: Bytes that it may take: what nobody else uses.
    """

    what: str
    num_bytes: int | None
    available: int

    def at_least(self, num_bytes: int | None) -> Need:
        """The larger of what was found and `num_bytes`."""
        known = [found for found in (self.num_bytes, num_bytes) if found is not None]
        return replace(self, num_bytes=max(known, default=None))

    def __str__(self) -> str:
        """A few words for people."""
        taken = (
            f"unknown {self.what}"
            if self.num_bytes is None
            else f"{format_size(self.num_bytes)} of {self.what}"
        )
        return f"{taken} (of {format_size(self.available)})"


@dataclass(frozen=True, slots=True)
class Needs:
    """All that a training takes."""

    parts: tuple[Need, ...]

    def __str__(self) -> str:
        """One line for people."""
        return f"it needs {', '.join(map(str, self.parts))}"

    def check(self) -> Needs:
        """Gives itself back.

        Raises:
            ResourceError: If anything does not suffice.
        """
        short = [part for part in self.parts if (part.num_bytes or 0) > part.available]
        if short:
            raise ResourceError(map(_short_fault, short))
        return self


def measure_needs(
    task: AbstractTask, sampler: Sampler, result_bytes: int, folder: Path, device: torch.device
) -> Needs:
    """Rehearses one step, unless it is certain not to fit, and adds up what will be written.

    Args:
        task: What will be trained.
        sampler: Gives its batches.
        result_bytes: What is written for its validation cases.
        folder: Where the run lies.
        device: Where it is trained.

    Raises:
        ConfigError: If the network cannot be compiled.
        ResourceError: If memory or disk do not suffice.
    """
    weights = sum(tensor.nbytes for tensor in task.weights().values())
    disk = Need("disk", _CHECKPOINT_SIZES * weights + result_bytes, shutil.disk_usage(folder).free)
    own = 0 if device.type == "cuda" else resident_bytes()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else own + available_bytes()
    what = "GPU memory" if device.type == "cuda" else "memory"
    # A system that runs out of memory often kills the process instead of refusing: so not by trying alone.
    Needs((Need(what, own + task.least_bytes(sampler.shape), free), disk)).check()
    peak = None
    with told_out_of_memory():
        try:
            peak = own + _MOMENTS * weights + measure_peak(lambda: task.rehearse(sampler.draw(0)), device)
        except UnmeasurableError:
            task.rehearse(sampler.draw(0))  # all the same: other processes sum their losses with this one
    return Needs((Need(what, peak, free), disk)).check()


def told_out_of_memory() -> AbstractContextManager[None]:
    """Tells people that a training step does not fit into memory; see `memory_faults`."""
    return memory_faults("training", "a training step", _ADVICE)


def _short_fault(need: Need) -> Fault:
    if need.what == "disk":
        message = (
            f"the disk is too small: it needs {need}; free some space, or start the training in another "
            "folder"
        )
        return Fault("training", "disk-full", message)
    return Fault("training", "out-of-memory", f"it needs {need}; {_ADVICE}")
