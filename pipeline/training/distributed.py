"""Several processes that train one network together, each on its share of the batch of every step.

torchrun starts them. Sums over the batch run over all processes, in the loss as in the gradients, so that
they learn what one process with the whole batch would. Gradients are summed in one go after the backward
pass, not by `DistributedDataParallel`: its wrapper would stand before the network's other ways forward, and
what it hides behind the backward pass is short, 4 MB for a network of a million weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import ConfigError, Fault, Stopped

# A process that ends closes its connections, and the others know at once; this is for the first one's
# preparing of the cases, which the others wait for.
_PATIENCE = timedelta(hours=12)
_MOST_TOLD: Final = 200


@dataclass(frozen=True)
class World:
    """The processes that train together; with its defaults, one that trains alone.

    Every method is a meeting: all processes have to call it, in the same order. It raises `Stopped` if
    another process was lost.

    Attributes:
        rank: The number of this process, from 0.
        size: How many there are.
        group: What connects them; None for one alone.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes the run."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of every process's `values`, element by element; all get the same bits.

        Its gradient is that of one's own values: what all processes make of their shares then adds up to the
        gradient of the whole (`sum_gradients`).
        """
        if self.group is None:
            return values
        total: Tensor = _Total.apply(values, self)  # type: ignore[no-untyped-call]  # torch has no types here
        return total

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its sum over all processes."""
        if self.group is None:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self._reduce(flat, dist.ReduceOp.SUM)
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest of every process's `values`, position by position."""
        if self.group is None:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        self._reduce(numbers, dist.ReduceOp.MAX)
        result: list[float] = numbers.tolist()
        return result

    def told_by_first(self, text: str) -> str:
        """The first process's text, 200 bytes at most, for all; the others' own does not count."""
        own = text.encode() if self.is_first else b""
        numbers = self.largest([float(byte) for byte in own.ljust(_MOST_TOLD, b"\0")])
        return bytes(map(int, numbers)).rstrip(b"\0").decode()

    def check_agreement(self, subject: str) -> None:
        """Refuses to go on if not all processes have the same `subject`.

        Raises:
            ConfigError: In all of them.
        """
        digest = hashlib.sha256(subject.encode()).digest()
        both = [*map(float, digest), *(-float(byte) for byte in digest)]
        if self.largest(both) != both:
            message = "not all processes have the same config, data and run; let all see the same files"
            raise ConfigError(Fault("torchrun", "processes-disagree", message))

    def check_alone(self, subject: str, advice: str) -> None:
        """Refuses to go on if this is not the only process.

        Args:
            subject: What one process does alone.
            advice: What to do instead.

        Raises:
            ConfigError: In the first of several.
            Stopped: In the others.
        """
        with self.first_alone():
            if self.size > 1:
                message = f"{self.size} processes were started, and one does this alone; {advice}"
                raise ConfigError(Fault(subject, "several-processes", message))

    def wait(self) -> None:
        """Returns when all processes are here."""
        self.largest([0.0])

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs the block, and the others once it is through."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def leave(self) -> None:
        """Parts from the others, when all are here; what follows is done alone."""
        if self.group is not None:
            self.wait()
            dist.destroy_process_group()

    def _reduce(self, values: Tensor, operation: Any) -> None:  # noqa: ANN401 - torch's own kind of enum
        options = dist.AllreduceOptions()
        options.reduceOp = operation
        try:
            self.group.allreduce([values], options).wait()
        except RuntimeError as error:
            # Whoever ended tells why; what gloo and nccl say of a closed connection helps nobody.
            raise Stopped("another process of this training has ended") from error


ALONE: Final = World()


@contextmanager
def join_world() -> Iterator[World]:
    """The processes that torchrun started together with this one; this one alone where it started none.

    Raises:
        Stopped: If they do not all meet.
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    # Numbers on the CPU go by gloo even where gradients go by nccl: whoever asks for them waits for no GPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=_PATIENCE)
    except RuntimeError as error:  # one has ended already, or they look for each other at the wrong place
        reason = next(iter(str(error).splitlines()), "no reason is known")
        raise Stopped(f"the processes of this training did not all meet: {reason}") from error
    try:
        yield World(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
    finally:
        with suppress(RuntimeError):  # one that has ended cannot say goodbye
            if dist.is_initialized():
                dist.destroy_process_group()


def own_device(device: torch.device, world: World) -> torch.device:
    """The GPU of this process among those of its machine; a CPU is everybody's.

    Raises:
        ConfigError: If the machine has fewer GPUs than processes.
    """
    if device.type != "cuda" or world.group is None:
        return device
    number, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= num_gpus:
        message = f"this machine has {num_gpus} GPUs; start torchrun with --nproc-per-node {num_gpus} at most"
        raise ConfigError(Fault("torchrun", "too-few-gpus", message))
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


class _Total(torch.autograd.Function):
    """A sum over all processes, whose gradient passes to one's own share as it is."""

    @staticmethod
    def forward(context: Any, values: Tensor, world: World) -> Tensor:  # noqa: ANN401 - torch's own
        total = values.detach().clone()
        world._reduce(total, dist.ReduceOp.SUM)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's own
        return gradient, None
