"""A small, strict YAML: plain mappings, lists and scalars, each with the place where it stands.

Read from PyYAML's events rather than its composer, so that depth and size are bounded while reading and an
alias is seen before anything is built from it. Scalars follow YAML 1.2 with its spare spellings left out:
`null`, `true`, `false`, decimal numbers and text, so `no` is text and `1e-5` a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from pipeline.errors import ConfigError, Fault

MAX_BYTES = 2**20
MAX_DEPTH = 40
MAX_NODES = 10_000

KeyPath = tuple[str | int, ...]
Locate = Callable[[int, int], str]
"""Names a place for people, from its line and column, both counted from 1."""

_NOTHING = ("", "~", "null")
_BOOLEANS = {"true": True, "false": False}
# A leading zero is octal to YAML 1.1 and decimal to YAML 1.2, so such digits are left as text.
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)$")
_DECIMAL = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$")
_MAX_DIGITS = 300  # all of these fit a float; int() takes quadratic time and gives up at 4300


@dataclass(frozen=True)
class Document:
    """What a YAML text holds.

    Attributes:
        values: Mappings, lists and scalars, none of them shared.
        marks: Where each key and list entry stands; `()` is the whole.
        faults: What is forbidden but could be read past.
        refused: Paths whose value was forbidden and is only held by a stand-in.
    """

    values: Any
    marks: Mapping[KeyPath, str] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()
    refused: frozenset[KeyPath] = frozenset()

    def where(self, path: KeyPath) -> str:
        """The place of `path` or of the nearest thing around it; the dotted key if there are no marks."""
        around = (path[:end] for end in range(len(path), -1, -1))
        return next((self.marks[p] for p in around if p in self.marks), dotted(path) or "job")

    def is_refused(self, path: KeyPath) -> bool:
        """Whether `path` lies in a value that was refused already."""
        return any(path[:end] in self.refused for end in range(len(path) + 1))


def read_yaml(text: str, locate: Locate, root: KeyPath = ()) -> Document:
    """Reads one YAML document.

    Args:
        text: The document.
        locate: Names the places of the marks and faults.
        root: The path at which the document will stand in a larger one; all its paths begin with it.

    Raises:
        ConfigError: If the text cannot be read to its end: wrong syntax, too deep, too many values, several
            documents. Aliases, tags, merge keys and duplicate keys become faults of the document instead.
    """
    return _Reader(text, locate, root).document()


def write_yaml(values: Mapping[str, object]) -> str:
    """Block-style YAML with one-line lists, which `read_yaml` gives back unchanged."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def dotted(path: KeyPath) -> str:
    """`training.patch_size[0]` for people, long and unprintable names made harmless."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_quoted(part)}" for part in path)
    return text.removeprefix(".")


class _Reader:
    """Builds a document from the parser's events, in one pass."""

    def __init__(self, text: str, locate: Locate, root: KeyPath) -> None:
        self._text = text
        self._locate = locate
        self._root = root
        self._events = yaml.parse(text, Loader=yaml.SafeLoader)
        self._num_nodes = 0
        self._marks: dict[KeyPath, str] = {root: locate(1, 1)}
        self._faults: list[Fault] = []
        self._refused: set[KeyPath] = set()

    def document(self) -> Document:
        values = None
        self._next()
        if isinstance(self._next(), yaml.DocumentStartEvent):
            values = self._node(self._next(), self._root)
            self._next()
            event = self._next()
            if not isinstance(event, yaml.StreamEndEvent):
                message = "a second document begins here; keep one"
                raise self._stop(self._where(event), "several-documents", message)
        return Document(values, self._marks, tuple(self._faults), frozenset(self._refused))

    def _node(self, event: yaml.Event, path: KeyPath) -> object:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise self._stop(self._where(event), "too-large", f"a config holds at most {MAX_NODES} values")
        if len(path) + isinstance(event, yaml.CollectionStartEvent) > MAX_DEPTH:
            message = f"values may be nested {MAX_DEPTH} levels deep, not deeper"
            raise self._stop(self._where(event), "too-deep", message)
        assert isinstance(event, yaml.NodeEvent), "the parser ends a collection only where one began"
        self._check_plain(event, path)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        if isinstance(event, yaml.ScalarEvent):
            self._check_text(event, path)
            return event.value if event.style is not None else _resolved(event.value)
        return None  # an alias, refused by now

    def _mapping(self, path: KeyPath) -> dict[str, object]:
        values: dict[str, object] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                message = "a key is a plain name, not a list, mapping or alias"
                raise self._stop(self._where(event), "yaml-key", message)
            inner = (*path, event.value)
            self._check_key(event, inner)
            if event.value in values:
                message = f"`{dotted(inner)}` stands already at {self._marks[inner]}; keep one of them"
                self._faults.append(Fault(self._where(event), "duplicate-key", message))
            self._marks[inner] = self._where(event)
            values[event.value] = self._node(self._next(), inner)
        return values

    def _sequence(self, path: KeyPath) -> list[object]:
        values: list[object] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            inner = (*path, len(values))
            self._marks[inner] = self._where(event)
            values.append(self._node(event, inner))
        return values

    def _check_key(self, event: yaml.ScalarEvent, path: KeyPath) -> None:
        self._check_plain(event, path)
        self._check_text(event, path)
        if event.value == "<<" and event.style is None:
            self._refuse(event, path, "yaml-merge", "merge keys (`<<`) are not allowed; write the keys out")

    def _check_plain(self, event: yaml.NodeEvent, path: KeyPath) -> None:
        name = _harmless(event.anchor or "")
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, path, "yaml-alias", f"aliases (`*{name}`) are not allowed; write it out")
        elif event.anchor is not None:
            self._refuse(event, path, "yaml-anchor", f"anchors (`&{name}`) are not allowed; remove it")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            tag = _harmless(event.tag.replace("tag:yaml.org,2002:", "!!"))
            self._refuse(event, path, "yaml-tag", f"tags (`{tag}`) are not allowed; write the plain value")

    def _check_text(self, event: yaml.ScalarEvent, path: KeyPath) -> None:
        if any("\ud800" <= character <= "\udfff" for character in event.value):
            self._refuse(event, path, "yaml-character", "half a character (a lone surrogate) is not text")

    def _next(self) -> yaml.Event:
        try:
            return next(self._events)
        except yaml.reader.ReaderError as error:
            before = self._text[: error.position]
            line, column = before.count("\n") + 1, error.position - before.rfind("\n")
            message = f"the character {self._text[error.position]!a} is not allowed; remove it"
            raise self._stop(self._locate(line, column), "yaml-syntax", message) from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            assert mark is not None, "scanner and parser always say where"
            where = self._locate(mark.line + 1, mark.column + 1)
            said = ": ".join(part for part in (error.context, error.problem) if part)
            raise self._stop(where, "yaml-syntax", f"this is not YAML ({said})") from None
        except (ValueError, OverflowError) as error:  # PyYAML lets chr() and int() fail, as on "\UFFFFFFFF"
            raise self._stop(self._marks[self._root], "yaml-syntax", f"this is not YAML ({error})") from None

    def _where(self, event: yaml.Event) -> str:
        assert event.start_mark is not None, "the parser marks every event"
        return self._locate(event.start_mark.line + 1, event.start_mark.column + 1)

    def _refuse(self, event: yaml.Event, path: KeyPath, rule: str, message: str) -> None:
        self._refused.add(path)
        self._faults.append(Fault(self._where(event), rule, message))

    def _stop(self, where: str, rule: str, message: str) -> ConfigError:
        return ConfigError([*self._faults, Fault(where, rule, message)])


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or this reader would take for something else."""


def _one_line(dumper: yaml.SafeDumper, values: list[object]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


def _escaped(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Text in double quotes where it holds control characters, which PyYAML otherwise writes as they are."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(list, _one_line)
_Dumper.add_representer(str, _escaped)
# PyYAML takes `1e-5` for text and would write such a name bare; every other spelling it quotes by itself.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _DECIMAL, list("-+.0123456789"))


def _resolved(text: str) -> object:
    """The value of a plain scalar. A number out of range becomes infinite, which the schema refuses."""
    if text in _NOTHING:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.match(text):
        return int(text) if len(text) <= _MAX_DIGITS else float(text)
    return float(text) if _DECIMAL.match(text) else text


def _quoted(name: str) -> str:
    return f'"{_harmless(name)}"' if "." in name else _harmless(name)


def _harmless(name: str) -> str:
    shown = name if name.isprintable() else ascii(name)[1:-1]
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
