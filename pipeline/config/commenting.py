"""A complete config file with a comment for every setting."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel

from pipeline.config.schema import JOBS
from pipeline.config.sections import Section
from pipeline.config.strict_yaml import write_yaml

_WIDTH, _COLUMN = 110, 32


def commented_yaml(
    values: Mapping[str, object], comments: Mapping[str, str], heading: Sequence[str] = ()
) -> str:
    """Writes settings with a comment each: the one given, else the first sentence of its documentation.

    Args:
        values: Every setting of a job, as JSON-able values.
        comments: By dotted key.
        heading: Lines that stand above everything.
    """
    lines = [f"# {line}".rstrip() for line in heading]
    lines += _section(JOBS[str(values["task"])], values, comments, ())
    return "\n".join(lines) + "\n"


def _section(
    section: type[BaseModel], values: Mapping[str, object], comments: Mapping[str, str], path: tuple[str, ...]
) -> Iterator[str]:
    indent = "  " * len(path)
    written = {name: write_yaml({name: values[name]}).splitlines() for name in section.model_fields}
    column = max((len(line[0]) for line in written.values() if len(line) == 1), default=0)
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            inner = values[name]
            assert isinstance(inner, Mapping)
            yield from ("", f"{indent}{name}:")
            yield from _section(kind, inner, comments, (*path, name))
        else:
            comment = comments.get(".".join((*path, name))) or _first_sentence(field.description or "")
            yield from _setting(written[name], comment, indent, min(column, _COLUMN))


def _setting(lines: Sequence[str], comment: str, indent: str, column: int) -> Iterator[str]:
    """The setting with its comment behind it, or above it where there is no room."""
    behind = f"{indent}{lines[0]:<{column}}  # {comment}"
    if len(lines) == 1 and len(behind) <= _WIDTH:
        yield behind
        return
    yield from (f"{indent}# {line}" for line in textwrap.wrap(comment, _WIDTH - len(indent) - 2))
    yield from (f"{indent}{line}" for line in lines)


def _first_sentence(description: str) -> str:
    """Up to its first full stop or semicolon, without the mark."""
    text = " ".join(description.split())
    ends = [place for mark in (". ", "; ") if (place := text.find(mark)) > 0]
    return text[: min(ends, default=len(text))].rstrip(".")
