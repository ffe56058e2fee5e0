"""Memory of this process and of a GPU, and sizes as people write them."""

from __future__ import annotations

import ctypes
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from pipeline.errors import ConfigError, Fault, ResourceError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"\s*(?P<number>\d+(\.\d+)?)\s*(?P<unit>[A-Za-z]*)\s*")
# From glibc's malloc.h.
_M_ARENA_MAX, _M_MMAP_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -4, -3, -1
_RESET_PEAK = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class UnmeasurableError(ConfigError):
    """This system does not tell the peak of a process; nothing has run."""


def measure_peak(action: Callable[[], object], device: torch.device) -> int:
    """Bytes that `action` takes at its peak beyond what is taken before: of a GPU, or of this process.

    Raises:
        UnmeasurableError: If the system does not tell the peak of a process; Linux does.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # The kernel's own account misses nothing between two looks; it begins anew when it is told so.
        _RESET_PEAK.write_text("5")
        _read_peak()
    except (OSError, StopIteration) as error:
        message = "this system does not tell a program's peak of memory, Linux does; leave the budget out"
        raise UnmeasurableError(Fault("max-memory", "not-measurable", message)) from error
    before = resident_bytes()
    action()
    return max(_read_peak() - before, 0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Lets the C library keep memory that was freed, and give it back at the end.

    Otherwise every large tensor's pages are asked of the system anew and filled with zeros, which has taken
    from a tenth to half of a forward pass. Not for work with a memory budget, which has to give back what it
    no longer needs. Does nothing where the library is not glibc. It holds for all threads, and ends with the
    first context that ends: not to be nested.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    # A thread's own arena could hold nothing large.
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_MAX, 65536)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**26)
        libc.malloc_trim(0)


def resident_bytes() -> int:
    """Physical memory of this process."""
    return int(psutil.Process().memory_info().rss)


def available_bytes() -> int:
    """Physical memory that nobody uses, after the C library has given back what was freed."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)
    return int(psutil.virtual_memory().available)


def attainable_bytes() -> int:
    """Physical memory that no other program uses: free, or this process's own."""
    return resident_bytes() + int(psutil.virtual_memory().available)


def _read_peak() -> int:
    told = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(told.split()[1])


def _glibc() -> Any:  # noqa: ANN401 - a C library has no type
    """The C library if it is glibc, else None."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def parse_size(text: str) -> int:
    """Bytes of a size such as `2GiB`, `1500 MB` or `800000000`.

    Raises:
        ConfigError: If it is none.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match["unit"].upper() not in _UNITS:
        message = f"a size such as 2GiB or 1500MB was expected, not {text!r}"
        raise ConfigError(Fault("max-memory", "not-a-size", message))
    return int(float(match["number"]) * _UNITS[match["unit"].upper()])


def format_size(num_bytes: int) -> str:
    """A size for people, in GiB or MiB."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def format_need(num_bytes: int) -> str:
    """As `format_size`, of what is needed, and so rounded up: who allows what is told has enough."""
    step = 2**30 / 100 if num_bytes >= 2**30 else 2**20
    return format_size(math.ceil(math.ceil(num_bytes / step) * step))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice; torch has no type of its own for it on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    told = str(error)
    if isinstance(error, RuntimeError) and any(
        phrase in told
        for phrase in ("not enough memory", "can't allocate memory", "bad_alloc", "out of memory")
    ):
        return True
    # MONAI tells only which transform failed, and keeps the reason behind it.
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


@contextmanager
def memory_faults(
    where: str, what: str = "it", advice: str = "end other programs, or crop the image"
) -> Iterator[None]:
    """Tells people what torch says in several ways: `what` does not fit into memory, and what to do.

    Args:
        where: The case, say, that the fault is of.
        what: Does not fit.
        advice: What to do.

    Raises:
        ResourceError: If what is done in it does not fit.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = f"{what} does not fit into memory; {advice}"
        raise ResourceError(Fault(where, "out-of-memory", message)) from error
