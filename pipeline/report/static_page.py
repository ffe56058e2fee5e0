"""One HTML page that opens from disk: text is escaped, pictures lie in it, nothing is fetched or run."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""Content security policy of a page without scripts."""

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2430; background: #fff; max-width: 1180px;
  margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e4e7eb;
  vertical-align: top; }
th { color: #6b7280; font-weight: 600; }
td, li { overflow-wrap: anywhere; }
table.numbers :is(th, td:not(:last-child)) { white-space: nowrap; overflow-wrap: normal; }
tr.better td:first-child { border-left: 4px solid #009E73; padding-left: .6rem; }
tr.worse td:first-child { border-left: 4px solid #D55E00; padding-left: .6rem; }
img { max-width: 100%; height: auto; border-radius: 4px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption, .faint { color: #6b7280; font-size: .9rem; }
"""


def build_page(title: str, body: Iterable[str], policy: str = POLICY) -> str:
    """A whole HTML document.

    Args:
        title: Text of its title.
        body: Pieces of HTML, as the functions below give them.
        policy: Content security policy; it holds for everything in the page.
    """
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        )
    )


def element(tag: str, text: str, kind: str = "") -> str:
    """An element that holds `text` and nothing else, whatever is in it."""
    attribute = f' class="{escape(kind)}"' if kind else ""
    return f"<{tag}{attribute}>{escape(text)}</{tag}>"


def bullets(texts: Iterable[str]) -> str:
    """A list of texts."""
    return "<ul>" + "".join(element("li", text) for text in texts) + "</ul>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], row_kinds: Iterable[str] = ()) -> str:
    """A table of texts that breaks them where they are long.

    Args:
        header: Names of the columns.
        rows: Texts.
        row_kinds: A class for each row, if any has one.
    """
    return _table(header, rows, row_kinds, "")


def number_table(header: Sequence[str], rows: Iterable[Sequence[str]], row_kinds: Iterable[str] = ()) -> str:
    """The same with lines that stay whole in all columns but the last."""
    return _table(header, rows, row_kinds, "numbers")


def picture(path: Path, caption: str) -> str:
    """A PNG, its bytes in the page."""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{content}">'
        f"{element('figcaption', caption)}</figure>"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], row_kinds: Iterable[str], kind: str) -> str:
    head = "".join(element("th", name) for name in header)
    body = "".join(
        f'<tr class="{escape(row_kind)}">' + "".join(element("td", cell) for cell in row) + "</tr>"
        for row, row_kind in zip_longest(rows, row_kinds, fillvalue="")
    )
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
