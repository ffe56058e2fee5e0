"""`clinseg doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from pipeline.environment import environment
from pipeline.tracking import STORE, tracking_uri

_GIB = 2**30
_LEAST_MEMORY_GIB = 4
_LEAST_DISK_GIB = 5
_EXTRAS = {"nilearn": "demo"}
_LOOK_S = 0.5
_LEAST_BUSY = 0.5  # cores: less is the system itself


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found.

    Attributes:
        facts: Name and value, in the order to show them.
        problems: What will hinder some command, each with what to do.
    """

    facts: dict[str, str]
    problems: list[str]


def doctor() -> Diagnosis:
    """Looks at versions, device, memory, disk, store and extras, and half a second at what others compute."""
    store = STORE.resolve()
    disk = shutil.disk_usage(_existing(store)).free / _GIB
    memory = psutil.virtual_memory()
    num_gpus = torch.cuda.device_count()
    facts = environment() | {
        "device": f"{num_gpus} × {torch.cuda.get_device_name()}" if num_gpus else "CPU only",
        "threads": str(torch.get_num_threads()),
        "memory": f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free",
        "store": str(store),
        "tracking": tracking_uri(None),
        "disk": f"{disk:.0f} GiB free",
    }
    if num_gpus > 1:
        facts["all GPUs"] = f"torchrun --standalone --nproc-per-node {num_gpus} -m pipeline train CONFIG"
    problems = [
        f"`{module}` is missing: pip install 'clinseg[{extra}]'"
        for module, extra in _EXTRAS.items()
        if find_spec(module) is None
    ]
    if memory.available < _LEAST_MEMORY_GIB * _GIB:
        problems.append(f"less than {_LEAST_MEMORY_GIB} GiB of memory is free: end other programs")
    if disk < _LEAST_DISK_GIB:
        problems.append(f"less than {_LEAST_DISK_GIB} GiB of disk is free at {store}: make room")
    loads = _loads()
    num_cores, busy, num_threads = len(loads), sum(loads), torch.get_num_threads()
    if num_threads > 1 and num_threads + busy > num_cores + _LEAST_BUSY:
        problems.append(
            f"other programs keep {busy:.1f} of {num_cores} cores busy, and a thread without a core holds up "
            f"all: end those programs, or set OMP_NUM_THREADS={max(1, int(num_cores - busy))}"
        )
    if not os.access(_existing(store), os.W_OK):
        problems.append(f"{store} cannot be written: run in another folder or mend its permissions")
    if not torch.cuda.is_available() and "nvidia-driver" in facts:
        problems.append("there is a GPU driver but torch cannot use it: see `CUDA` in the README")
    return Diagnosis(facts, problems)


def _loads() -> list[float]:
    """Shares of each core that this process may use, which others compute on while it waits."""
    shares = psutil.cpu_percent(_LOOK_S, percpu=True)
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(shares))
    return [share / 100 for core, share in enumerate(shares) if core in own]


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
