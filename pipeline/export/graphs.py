"""A network as a graph that runs without this program: ONNX, `torch.export` and TorchScript."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.files import atomic_path

Graph = Callable[[Tensor], Tensor]
"""Windows `(B, C, …)` to logits `(B, K, …)`."""


def write_onnx(path: Path, network: nn.Module, example: Tensor) -> None:
    """Writes an ONNX model with the input `image` and the output `logits`, for any batch.

    Args:
        path: Ends in `.onnx`.
        network: In evaluation mode.
        example: Two windows or more, so that the batch is not taken for a constant.

    Raises:
        ResourceError: If the file cannot be written.
    """
    with atomic_path(path) as temporary, _quietly():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
        assert program is not None, "it was asked for, not written to a file"
        program.save(str(temporary))


def load_onnx(path: Path) -> Graph:
    """An ONNX model, run by onnxruntime on the CPU."""
    import onnxruntime  # noqa: PLC0415 - an extra that only exports need

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(windows: Tensor) -> Tensor:
        (logits,) = session.run(None, {"image": np.ascontiguousarray(windows.numpy())})
        return torch.from_numpy(logits)

    return run


def write_torch_export(path: Path, network: nn.Module, example: Tensor) -> None:
    """Writes a `torch.export` program, for any batch; as `write_onnx`."""
    with atomic_path(path) as temporary, _quietly():
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.export.save(program, temporary)


def load_torch_export(path: Path) -> Graph:
    """A `torch.export` program."""
    return cast(Graph, torch.export.load(path).module())


def write_torchscript(path: Path, network: nn.Module, example: Tensor) -> None:
    """Writes a traced TorchScript module, which MONAI's bundles and MONAI Deploy load; as `write_onnx`."""
    with atomic_path(path) as temporary, _quietly():
        traced: Any = torch.jit.trace(network, example, check_trace=False)
        traced.save(str(temporary))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without gradients, and without what exporters tell their own programmers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            yield
    finally:
        logging.disable(level)
