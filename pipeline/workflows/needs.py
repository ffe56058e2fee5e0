"""What a training needs of memory and disk, found out before it starts."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.data.datasets import Batch
from pipeline.errors import ConfigError, Fault, ResourceError
from pipeline.memory import available_bytes, format_size, is_out_of_memory, measure_peak
from pipeline.training.task import AbstractTask
from pipeline.workflows.material import Material

# In sizes of the weights: the last state (weights, their average, two moments, weights for predicting) and
# the best weights, each twice while a new file takes the place of the old one, and the copy MLflow keeps.
_CHECKPOINT_SIZES = 13
_MOMENTS = 2


@dataclass(frozen=True, slots=True)
class Needs:
    """What a training takes, and what there is.

    Attributes:
        memory: Bytes of a training step on its device; None if the system does not tell.
        free_memory: Bytes that the device has.
        disk: Bytes of checkpoints and validation masks.
        free_disk: Bytes that the disk of the run has.
    """

    memory: int | None
    free_memory: int
    disk: int
    free_disk: int

    def __str__(self) -> str:
        """One line for people."""
        memory = "unknown memory" if self.memory is None else f"{format_size(self.memory)} of memory"
        return (
            f"it needs {memory} ({format_size(self.free_memory)} are free) and {format_size(self.disk)} of "
            f"disk ({format_size(self.free_disk)} are free)"
        )


def measure_needs(
    task: AbstractTask, batch: Batch, material: Material, folder: Path, device: torch.device
) -> Needs:
    """Rehearses one step and adds up what will be written.

    Args:
        task: What will be trained.
        batch: Any of its batches.
        material: Its cases.
        folder: Where the run lies.
        device: Where it is trained.

    Raises:
        ResourceError: If memory or disk do not suffice.
    """
    weights = sum(tensor.nbytes for tensor in task.weights().values())
    free_memory = available_bytes() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    memory = None
    try:
        with suppress(ConfigError):
            memory = _MOMENTS * weights + measure_peak(lambda: task.rehearse(batch), device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory() from error
    masks = sum(prepared.label.numel() for prepared in material.validation)
    needs = Needs(memory, free_memory, _CHECKPOINT_SIZES * weights + masks, shutil.disk_usage(folder).free)
    if needs.disk > needs.free_disk:
        message = f"the disk is too small: {needs}; free some space, or start the training in another folder"
        raise ResourceError(Fault(str(folder), "disk-full", message))
    return needs


def out_of_memory() -> ResourceError:
    """The error of a training that does not fit."""
    message = "a training step does not fit into memory; lower training.batch_size or training.patch_size"
    return ResourceError(Fault("training", "out-of-memory", message))
