"""Pages for people: one HTML file that needs nothing beside it, requests nothing, escapes what it is told."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.files import write_text

_ROOM: Final = Path(__file__).parent
STYLE: Final = _ROOM / "pages/page.css"
SORTING: Final = _ROOM / "pages/sorting.js"
"""Makes tables with the class `sortable` sort by a click on a heading."""
_TEMPLATES: Final = Environment(
    loader=PackageLoader("pipeline.report", "pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_page(
    path: Path,
    template: str,
    *,
    scripts: Sequence[Path] = (SORTING,),
    data: object = None,
    context: Mapping[str, Any],
) -> None:
    """Fills a template and writes it as one HTML file, whole or not at all.

    The page carries a content security policy that lets exactly these scripts and this style in, by their
    hashes, pictures and nothing else that were not in the file, and no request out.

    Args:
        path: Where to write.
        template: File in `pages/`; it extends `page.html`.
        scripts: Run in this order when the page is there; with none the page lets none in at all.
        data: What they work on, as JSON in the element `data`; None for nothing.
        context: What the template is told; text is escaped there.

    Raises:
        ResourceError: If the file cannot be written.
    """
    sources = [script.read_text(encoding="utf-8") for script in scripts]
    style = STYLE.read_text(encoding="utf-8")
    page = _TEMPLATES.get_template(template).render(
        **context,
        policy=Markup(html.escape(_policy(sources, style))),  # noqa: S704 - escaped
        style=Markup(style),  # noqa: S704 - our own file
        scripts=[_inline(source) for source in sources],
        data=_inline(json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"))
        if data is not None
        else None,
    )
    write_text(path, page)


def as_data_url(png: bytes) -> str:
    """A picture that lies in the page itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _policy(scripts: Sequence[str], style: str) -> str:
    allowed = " ".join(map(_hash, scripts)) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inline(text: str) -> Markup:
    """Text of a script element, which nothing but its end tag ends, and in which nothing is escaped."""
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError("a script in a page must not hold an end tag or a comment of HTML")
    return Markup(text)  # noqa: S704 - checked above
