"""Nested values as strict JSON, from which they come back with type, order and bits."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor

STATE: Final = "state/"
"""What the names of a state's tensors begin with in the file."""
SEGMENTER: Final = "segmenter/"
"""The same of a segmenter's."""


def pack(value: Any, tensors: dict[str, Tensor], where: str) -> Any:  # noqa: ANN401, PLR0911 - one return per kind
    """The JSON form of a nested value; its tensors are collected in `tensors`, names standing in for them."""
    match value:
        case Tensor():
            name = f"{STATE}{len(tensors)}"
            tensors[name] = value
            return {"__tensor__": name}
        case float() if not math.isfinite(value):  # JSON has no word for them, and a NaN has its own bits
            return {"__float__": struct.pack(">d", value).hex()}
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [pack(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
        case tuple():
            return {"__tuple__": [pack(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]}
        case dict() if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: pack(item, tensors, f"{where}.{key}") for key, item in value.items()}
        case dict():
            pairs = value.items()
            return {"__items__": [[pack(part, tensors, f"{where}.{k}") for part in (k, v)] for k, v in pairs]}
    raise TypeError(f"{where}: a checkpoint cannot hold a {type(value).__name__}")


def unpack(packed: Any, tensor: Callable[[str], Tensor]) -> Any:  # noqa: ANN401, PLR0911 - as above
    """The value that `pack` was given; `tensor` has the tensors by name."""
    match packed:
        case list():
            return [unpack(item, tensor) for item in packed]
        case {"__tensor__": str(name)}:
            return tensor(name)
        case {"__float__": str(digits)}:
            return struct.unpack(">d", bytes.fromhex(digits))[0]
        case {"__tuple__": list(items)}:
            return tuple(unpack(item, tensor) for item in items)
        case {"__items__": list(pairs)}:
            return {unpack(key, tensor): unpack(item, tensor) for key, item in pairs}
        case dict():
            return {key: unpack(item, tensor) for key, item in packed.items()}
    return packed
