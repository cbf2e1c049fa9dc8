"""Put generated text between the marks of a document.

A block lies between `<!-- name -->` and `<!-- /name -->`; what stands between the two is replaced.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence

from onnxopt.errors import InputError

_CODE = re.compile(r"(`[^`]*`)")


def fill(text: str, name: str, block: str) -> str:
    """Replace what stands between the marks of a block.

    Args:
        text: the document.
        name: of the block.
        block: what is to stand there, without line breaks at its ends.

    Raises:
        InputError: the marks are not there.
    """
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(text):
        raise InputError(f"no marks for the block {name!r}", hint=f"add <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda found: f"{found.group(1)}\n{block}\n\n{found.group(2)}", text)


def plain(text: str) -> str:
    """Keep Markdown from reading `<`, `*` and `_` of a sentence; what stands in backticks stays as it is."""
    return _outside_of_code(text, lambda part: re.sub(r"([*_])", r"\\\1", part).replace("<", "&lt;"), lambda part: part)


def cell(text: str) -> str:
    """Return a sentence as the cell of a table: on one line, its bars escaped, those in backticks too."""
    line = plain(" ".join(text.split()))
    return _outside_of_code(line, lambda part: part.replace("|", "\\|"), lambda part: code(part.strip("`")))


def code(text: str) -> str:
    """Return a word as code in a cell.

    GitHub wants a bar in backticks escaped and MkDocs shows the backslash, so a word with one is written as HTML.
    """
    if "|" not in text:
        return f"`{text}`" if text else ""
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>"


def _outside_of_code(text: str, change: Callable[[str], str], change_code: Callable[[str], str]) -> str:
    """Change the parts of a text outside of backticks in one way, those in them in another."""
    parts = _CODE.split(text)
    return "".join(change_code(part) if part.startswith("`") else change(part) for part in parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are escaped already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
