"""What a setting can be: the types of the schema's fields, and what is said of values that are none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StrictInt

_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _as_tuples(value: object) -> object:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _as_path(value: object) -> object:
    if not isinstance(value, str | Path):
        return value
    if not str(value) or _UNWRITABLE.search(str(value)):
        raise ValueError("expected the path of a file or folder, without control characters")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"`~` cannot be replaced ({error}); write the path out") from error


def _as_model(value: object) -> object:
    """A path where it has a suffix or a folder, as `workflows.runs.models` reads it; else a name."""
    if not isinstance(value, str | Path) or str(value).startswith("models:/"):
        return value
    path = _as_path(value)
    assert isinstance(path, Path)
    return path if path.suffix or len(path.parts) > 1 else value


def _check_order(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"expected the lower bound first, not {list(interval)}")
    return interval


Axes = Annotated[tuple[StrictInt, ...], BeforeValidator(_as_tuple), Field(min_length=2, max_length=3)]
PerLevel = Annotated[tuple[Axes, ...], BeforeValidator(_as_tuples)]
Spacing = Annotated[tuple[float, float, float], BeforeValidator(_as_tuple)]
Widths = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_as_tuple), Field(min_length=2)]
Region = Annotated[tuple[int, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
Integers = Annotated[tuple[int, ...], BeforeValidator(_as_tuple)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Structures = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65535)] | str, ...], BeforeValidator(_as_tuple), Field(min_length=1)
]
Interval = Annotated[tuple[float, float], BeforeValidator(_as_tuple), AfterValidator(_check_order)]
Factors = Annotated[
    tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]],
    BeforeValidator(_as_tuple),
    AfterValidator(_check_order),
]
Shares = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]],
    BeforeValidator(_as_tuple),
    AfterValidator(_check_order),
]
Pairs = Annotated[
    tuple[Annotated[tuple[str, str], BeforeValidator(_as_tuple)], ...], BeforeValidator(_as_tuple)
]
PathField = Annotated[Path, BeforeValidator(_as_path)]
ModelField = Annotated[Path | str, BeforeValidator(_as_model)]
Probability = Annotated[float, Field(ge=0, le=1)]
Colour = Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$")]
