"""Says what is wrong with a config, for people: pydantic's findings as faults with places and suggestions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipeline.config.schema import Job
from pipeline.config.sections import Section
from pipeline.config.strict_yaml import Document, KeyPath, dotted
from pipeline.errors import Fault

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping of names to values",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "is_instance_of": "the path of a file or folder",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
    "model_type": "a section of `key: value` lines",
    "string_pattern_mismatch": "text of the form `{pattern}`",
    "string_too_short": "text of at least {min_length} character(s)",
    "string_type": "text (in quotes if it looks like something else)",
    "too_long": "a list of at most {max_length} value(s)",
    "too_short": "a list of at least {min_length} value(s)",
    "tuple_type": "a list",
}
"""What a setting should have been, by pydantic's name of the error; the braces are its context."""

Keys = Mapping[KeyPath, FieldInfo]

_ANY = "*"
"""Stands for a name of the user's own in the path of a key."""
_NAMED = re.compile(r"(?P<key>[a-z_.]+): (?P<said>.+)", re.DOTALL)


def explained(error: ValidationError, document: Document, kind: type[Job]) -> list[Fault]:
    """One fault per wrong setting, from top to bottom; what was refused on reading is not mentioned again."""
    known = _known_keys(kind)
    errors: dict[KeyPath, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        errors.setdefault(_path(details, document, known), []).append(details)
    faults = [
        _fault(path, found, document, known)
        for path, found in errors.items()
        if not document.is_refused(path)
    ]
    order = {where: number for number, where in enumerate(document.marks.values())}
    return sorted(faults, key=lambda fault: order.get(fault.where, 0))


def shown(value: object) -> str:
    """A value in few words."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)} value(s)"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f"the text {value!r}" if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _path(details: ErrorDetails, document: Document, known: Keys) -> KeyPath:
    """The key that an error is about: pydantic's location without its names of union members and the like."""
    path: KeyPath = ()
    values = document.values
    for part in details["loc"]:
        if not _has(values, part):
            return (*path, part) if details["type"] == "missing" else path
        values = values[part]
        path = (*path, part)
    named = (*path, *_said(details)[0])
    return named if named in known else path


def _has(values: object, part: str | int) -> bool:
    if isinstance(values, list | tuple):
        return isinstance(part, int) and part < len(values)
    return isinstance(values, dict) and part in values


def _said(details: ErrorDetails) -> tuple[KeyPath, str]:
    """What a check of the schema says, and the key it names in front, seen from its section."""
    if details["type"] != "value_error":
        return (), details["msg"]
    message = str(details["ctx"]["error"])
    found = _NAMED.fullmatch(message)
    return (tuple(found["key"].split(".")), found["said"]) if found else ((), message)


def _fault(path: KeyPath, found: list[ErrorDetails], document: Document, known: Keys) -> Fault:
    kind, name = found[0]["type"], f"`{dotted(path) or 'job'}`"
    if kind == "extra_forbidden":
        rule, message = "unknown-key", f"{name} is not a key; {_advice(path, known)}"
    elif kind == "missing":
        rule, message = "missing-key", f"{name} is needed and missing{_meaning(path, known)}"
    elif kind == "value_error":
        key, said = _said(found[0])
        rule, message = "contradiction" if key else "wrong-value", f"{name}: {said}"
    else:
        expected = " or ".join(dict.fromkeys(_expected(details) for details in found))
        rule, message = "wrong-value", f"{name}: expected {expected}, got {shown(found[0]['input'])}"
    return Fault(document.where(path), rule, message)


def _expected(details: ErrorDetails) -> str:
    phrase = _EXPECTED.get(details["type"])
    if phrase is None:
        return details["msg"].removeprefix("Input should be ")
    return phrase.format(**details.get("ctx", {}))


def _meaning(path: KeyPath, known: Keys) -> str:
    """What a missing key is for, in the words of the schema."""
    field = known.get(path)
    return f": {field.description}" if field is not None and field.description else ""


def _advice(path: KeyPath, keys: Keys) -> str:
    """The nearest key that does exist or, with none near, those of the section."""
    known, around = list(keys), path[:-1]
    siblings = [key for key in known if key[:-1] == around]
    if not siblings:  # those of a section with a name of the user's
        siblings = [(*around, key[-1]) for key in known if key[:-1] == (*around[:-1], _ANY)]
    wanted = str(path[-1]).lower().replace("-", "_").rpartition(".")[2]
    for some, likeness in ((siblings, 1.0), (known, 1.0), (siblings, 0.7), (known, 0.7)):
        names = dict.fromkeys(str(key[-1]) for key in some)
        for near in get_close_matches(wanted, names, n=1, cutoff=likeness):
            return f"did you mean {' or '.join(f'`{dotted(key)}`' for key in some if key[-1] == near)}?"
    return f"{dotted(around) or 'a job'} takes " + ", ".join(str(key[-1]) for key in siblings)


@cache
def _known_keys(kind: type[Job]) -> Keys:
    return dict(_keys_of(kind, ()))


def _keys_of(section: type[Section], path: KeyPath) -> Iterator[tuple[KeyPath, FieldInfo]]:
    for name, field in section.model_fields.items():
        yield (*path, name), field
        kind, inner = field.annotation, (*path, name)
        if get_origin(kind) is dict:
            kind, inner = get_args(kind)[1], (*inner, _ANY)
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _keys_of(kind, inner)
