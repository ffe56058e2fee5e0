"""The configs of a bundle as plain data: references are looked up, expressions are refused, nothing is run.

MONAI evaluates text that begins with `$` as Python and builds whatever `_target_` names. Here both stay text.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.config.strict_yaml import MAX_BYTES, MAX_DEPTH, KeyPath, dotted, read_yaml
from pipeline.errors import ConfigError, Fault, InputError

_LONGEST_LITERAL: Final = 200
_MOST_VALUES: Final = 20_000
_TYPES: Final = {
    f"${module}.{name}": name
    for module in ("torch", "np", "numpy")
    for name in ("float32", "float16", "float64")
}
REFUSED: Final = object()
"""Stands for a value that was refused; a fault tells of it already."""


@dataclass(frozen=True, eq=False)
class ConfigFile:
    """A config of a bundle.

    Attributes:
        name: Within the bundle.
        values: As written, nothing resolved.
    """

    name: str
    values: Mapping[str, Any]

    def where(self, path: KeyPath) -> str:
        """File and key, for people."""
        return f"{self.name}: {dotted(path)}" if path else self.name

    def raw(self, path: KeyPath) -> Any:  # noqa: ANN401 - whatever is there
        """The value at a path as it is written; None if there is none."""
        value: Any = self.values
        for key in path:
            is_entry = isinstance(value, list) and isinstance(key, int) and key < len(value)
            if not is_entry and not (isinstance(value, Mapping) and key in value):
                return None
            value = value[key]
        return value

    def plain(self, path: KeyPath, faults: list[Fault]) -> Any:  # noqa: ANN401 - whatever is there
        """The value at a path with references replaced by what they name; `REFUSED` if it is not plain.

        Raises:
            InputError: If references to lists of references would make an endless value of it.
        """
        return self._plain(path, self.raw(path), faults, [])

    def follow(self, path: KeyPath, faults: list[Fault]) -> KeyPath:
        """Where the value at a path stands itself: behind the reference, if it is one."""
        for _ in range(MAX_DEPTH):
            value = self.raw(path)
            if not isinstance(value, str) or not value.startswith("@"):
                return path
            path = _target(value)
        faults.append(Fault(self.where(path), "bundle-reference", "references run in a circle; write it out"))
        return ()

    def _plain(  # noqa: PLR0911 - a return for each kind
        self,
        path: KeyPath,
        value: Any,  # noqa: ANN401 - whatever is there
        faults: list[Fault],
        seen: list[KeyPath],
        depth: int = 0,
    ) -> Any:  # noqa: ANN401 - whatever is there
        seen.append(path)
        if len(seen) > _MOST_VALUES:
            message = f"with its references it has more than {_MOST_VALUES} values; do not trust its source"
            raise InputError(Fault(self.where(path), "bundle-reference", message))
        if depth > MAX_DEPTH:
            faults.append(
                Fault(self.where(path), "bundle-reference", "it is nested too deeply; write it out")
            )
            return REFUSED
        match value:
            case str() if value.startswith("@"):
                target = _target(value)
                if self.raw(target) is None:
                    message = f"{_shown(value)} names nothing in this file; write the value there"
                    faults.append(Fault(self.where(path), "bundle-reference", message))
                    return REFUSED
                return self._plain(target, self.raw(target), faults, seen, depth + 1)
            case str() if value.startswith(("$", "%")):
                return self._literal(path, value, faults)
            case list():
                parts = [self._plain((*path, i), v, faults, seen, depth + 1) for i, v in enumerate(value)]
                return REFUSED if REFUSED in parts else parts
            case dict() if "_target_" in value:
                message = "an object stands here, and none is built; write a plain value"
                faults.append(Fault(self.where(path), "bundle-object", message))
                return REFUSED
            case dict():
                inner = {k: self._plain((*path, k), v, faults, seen, depth + 1) for k, v in value.items()}
                return REFUSED if REFUSED in inner.values() else inner
        return value

    def _literal(self, path: KeyPath, text: str, faults: list[Fault]) -> Any:  # noqa: ANN401 - whatever is there
        """What an expression is that is only a number, a text or a list of them, or the name of a type."""
        if text in _TYPES:
            return _TYPES[text]
        if text.startswith("$") and len(text) <= _LONGEST_LITERAL:
            try:
                return json.loads(json.dumps(ast.literal_eval(text[1:].strip())))
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                pass
        message = f"{_shown(text)} is an expression, and none is evaluated; write the value itself there"
        faults.append(Fault(self.where(path), "bundle-expression", message))
        return REFUSED


def read_config(name: str, path: Path) -> ConfigFile:
    """Reads a JSON or YAML file of a bundle.

    Raises:
        ConfigError: If it is too large, no such text, or no mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        values = _parse(name, content)
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        message = f"it cannot be read ({reason}); write plain JSON or YAML"
        raise ConfigError(Fault(name, "bundle-unreadable", message)) from error
    if not isinstance(values, dict):
        raise ConfigError(Fault(name, "bundle-unreadable", "it holds no mapping; see MONAI's bundle format"))
    return ConfigFile(name, values)


def _parse(name: str, content: bytes) -> Any:  # noqa: ANN401 - whatever is there
    if len(content) > MAX_BYTES:
        raise ConfigError(Fault(name, "too-large", "a config has at most a megabyte; shorten it"))
    text = content.decode("utf-8-sig")
    if name.endswith(".json"):
        return json.loads(text, object_pairs_hook=_unique)
    document = read_yaml(text, lambda line, column: f"{name}:{line}:{column}")
    if document.faults:
        raise ConfigError(document.faults)
    return document.values


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands in it twice")
    return values


def _target(reference: str) -> KeyPath:
    parts = reference[1:].replace("#", "::").split("::")
    return tuple(int(part) if part.isdecimal() and part.isascii() else part for part in parts)


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 60 else f"{text[:57]}...")
