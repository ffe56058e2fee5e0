"""A chain of MONAI transforms as it is written: names and arguments, of which only plain ones are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.bundles.plain import REFUSED, ConfigFile
from pipeline.config.strict_yaml import KeyPath
from pipeline.errors import Fault

Allowed = Mapping[str, tuple[object, ...] | None]
"""What an argument may be, by its name; None where it does not matter here."""

_MODULE: Final = re.compile(r"^(?:monai(?:\.[a-z0-9_]+)*\.)?([A-Za-z][A-Za-z0-9]*)$")
_DICTIONARY: Final = re.compile(r"(?<=[a-z0-9])(?:Dict|D|d)$")
_UNREAD: Final = frozenset({"_target_", "_desc_", "_disabled_", "keys", "allow_missing_keys"})
_MOST_STEPS: Final = 100
_COMPOSE: Final[Allowed] = {
    "transforms": None,
    "log_stats": None,
    "map_items": (True, 1),
    "unpack_items": (False,),
    "lazy": (False, None),
    "overrides": (None,),
}


@dataclass(frozen=True, eq=False)
class Step:
    """A transform.

    Attributes:
        name: Of the class without the `d` of dictionary transforms, such as `Spacing`.
        file: That it stands in.
        path: Where in it.
        faults: Where what is wrong is noted.
        place: Of what it is read for among its keys, which may have an argument each.
    """

    name: str
    file: ConfigFile
    path: KeyPath
    faults: list[Fault]
    place: int = 0

    @property
    def arguments(self) -> list[str]:
        """Names of its arguments, keys left out."""
        written: dict[str, Any] = self.file.raw(self.path)
        return [name for name in written if name not in _UNREAD]

    def take(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - whatever is written
        """An argument; `REFUSED` if it is no plain value."""
        if name not in self.arguments:
            return default
        return self.file.plain((*self.path, name), self.faults)

    def take_own(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - whatever is written
        """The same of an argument that may have a value for each key."""
        value = self.take(name, default)
        return value[self.place] if isinstance(value, list) and len(value) > self.place else value

    def refuse(self, name: str | None, message: str) -> None:
        """Notes that an argument, or the transform itself, cannot be taken over."""
        path = self.path if name is None else (*self.path, name)
        self.faults.append(Fault(self.file.where(path), "bundle-unmapped", message))

    def check(self, allowed: Allowed) -> bool:
        """Whether every argument is one of those that are understood; notes those that are not."""
        before = len(self.faults)
        for name in self.arguments:
            if name not in allowed:
                self.refuse(
                    name, f"nothing here does what {name} of {self.name} does; leave it out if it can be"
                )
                continue
            values = allowed[name]
            if values is None:
                continue
            value = self.take(name)
            if value is not REFUSED and not any(_is_same(value, known) for known in values):
                expected = " or ".join(str(known) for known in values)
                self.refuse(name, f"expected {expected}, got {str(value)[:60]!r}; nothing here does that")
        return len(self.faults) == before


def read_steps(file: ConfigFile, path: KeyPath, key: str, faults: list[Fault]) -> Iterator[Step]:
    """The transforms of a chain that touch `key`, in their order.

    Args:
        file: That the chain stands in.
        path: Of a `Compose`, or of a list of transforms.
        key: Of the dictionary that is handed on: `image` or `pred`.
        faults: What is wrong is noted there.
    """
    path = file.follow(path, faults)
    if isinstance(file.raw(path), dict):
        name = target_name(file, path, faults)
        if name != "Compose":
            message = "a list of transforms, or a `Compose` of them, is needed here"
            faults.append(Fault(file.where(path), "bundle-unmapped", message))
            return
        if _is_disabled(file.raw((*path, "_disabled_"))):
            return
        if not Step(name, file, path, faults).check(_COMPOSE):
            return
        path = file.follow((*path, "transforms"), faults)
    written = file.raw(path)
    if not isinstance(written, list) or len(written) > _MOST_STEPS:
        message = f"a list of at most {_MOST_STEPS} transforms is needed here"
        faults.append(Fault(file.where(path), "bundle-unmapped", message))
        return
    for number in range(len(written)):
        place = file.follow((*path, number), faults)
        value = file.raw(place)
        if not isinstance(value, dict):
            message = "a transform with its `_target_` is needed here"
            faults.append(Fault(file.where(place), "bundle-unmapped", message))
        elif not _is_disabled(value.get("_disabled_")):
            step = _read_step(file, place, key, faults)
            if step is not None:
                yield step


def target_name(file: ConfigFile, path: KeyPath, faults: list[Fault]) -> str | None:
    """The class that `_target_` names, if it may be one of MONAI's; it is only compared, never imported."""
    target = file.raw((*path, "_target_"))
    found = _MODULE.match(target) if isinstance(target, str) else None
    if found is not None:
        for key in ("_requires_", "_mode_"):
            if file.raw((*path, key)) is not None:
                message = "it says what to run at another place or time, and nothing is run; leave it out"
                faults.append(Fault(file.where((*path, key)), "bundle-expression", message))
        return found[1]
    message = f"{str(target)[:60]!r} is none of MONAI's classes; nothing else is known here"
    faults.append(Fault(file.where((*path, "_target_")), "bundle-target", message))
    return None


def _read_step(file: ConfigFile, path: KeyPath, key: str, faults: list[Fault]) -> Step | None:
    name = target_name(file, path, faults)
    if name is None:
        return None
    keys = file.plain((*path, "keys"), faults)
    named = keys if isinstance(keys, list) else [keys]
    if keys is not REFUSED and key not in named:
        return None
    place = named.index(key) if key in named else 0
    return Step(_DICTIONARY.sub("", name), file, path, faults, place)


def _is_disabled(written: object) -> bool:
    """As MONAI understands it."""
    return written.lower().strip() == "true" if isinstance(written, str) else bool(written)


def _is_same(value: object, known: object) -> bool:
    if isinstance(value, bool) or isinstance(known, bool):
        return value is known
    return value == known
