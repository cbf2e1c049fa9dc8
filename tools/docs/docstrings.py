"""Read a docstring as this code base writes them, and say it in Markdown.

A docstring is paragraphs, literal blocks behind `::`, and the labelled lists of Google's style: `Args:`, `Attributes:`,
`Returns:`, `Raises:`.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from tools.docs.blocks import plain

LISTS = ("Args", "Attributes", "Returns", "Yields", "Raises")
_LABEL = re.compile(r"^([A-Z]\w*):$")
_ITEM = re.compile(r"^(`?[\w.*, ]+`?(?: \([^)]*\))?): (.*)$", re.DOTALL)


@dataclass(frozen=True)
class Docstring:
    """A docstring in its parts.

    Attributes:
        summary: the first paragraph, on one line.
        body: Markdown of what follows it, without the lists.
        lists: text of each labelled list, its indentation gone.
    """

    summary: str
    body: str
    lists: dict[str, str]

    def items(self, label: str) -> dict[str, str]:
        """Return the entries of a list by name, each on one line; what is returned is one entry named ''."""
        text = self.lists.get(label, "")
        if label in {"Returns", "Yields"}:
            return {"": " ".join(text.split())} if text else {}
        return dict(_items(text))


def read(thing: object) -> Docstring:
    """Return the docstring of a module, a class or a function; an empty one where it has none of its own."""
    return parse(inspect.getdoc(thing) or "")


def parse(text: str) -> Docstring:
    """Return the parts of a docstring whose indentation is gone."""
    summary, _, rest = inspect.cleandoc(text).partition("\n\n")
    plain_lines: list[str] = []
    lists: dict[str, list[str]] = {}
    current: list[str] = plain_lines
    for line in rest.splitlines():
        label = _LABEL.match(line)
        if label and label.group(1) in LISTS:
            current = lists.setdefault(label.group(1), [])
            continue
        if line and not line.startswith(" ") and current is not plain_lines:
            current = plain_lines
        current.append(line)
    dedented = {label: textwrap.dedent("\n".join(lines)).strip() for label, lines in lists.items()}
    return Docstring(" ".join(summary.split()), markdown("\n".join(plain_lines)), dedented)


def markdown(text: str) -> str:
    """Return prose with literal blocks as Markdown; each paragraph becomes one line."""
    parts: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        indented = paragraph.startswith("    ")
        if indented and parts and (parts[-1].endswith("::") or parts[-1].endswith("\n```")):
            literal = textwrap.dedent(paragraph)
            if parts[-1].endswith("\n```"):
                parts[-1] = parts[-1].removesuffix("```") + f"\n{literal}\n```"
            else:
                parts[-1] = parts[-1].removesuffix(":")
                parts.append(f"```text\n{literal}\n```")
        elif paragraph.lstrip().startswith(("* ", "- ")):
            parts.append(_bullets(paragraph))
        elif paragraph.strip():
            parts.append(plain(" ".join(paragraph.split())))
    return "\n\n".join(parts)


def _bullets(paragraph: str) -> str:
    """Return a list with each of its entries on one line."""
    entries = re.split(r"^[*-] ", textwrap.dedent(paragraph), flags=re.MULTILINE)
    return "\n".join(f"* {plain(' '.join(entry.split()))}" for entry in entries if entry.strip())


def _items(text: str) -> Iterator[tuple[str, str]]:
    entries = re.split(r"\n(?! )", text) if text else []
    for entry in entries:
        found = _ITEM.match(entry)
        if found:
            yield found.group(1).strip("`"), " ".join(found.group(2).split())
        else:
            yield "", " ".join(entry.split())


def described(documented: Docstring) -> str:
    """Return all but the summary as Markdown: the body, then a list for each label."""
    parts = [documented.body] if documented.body else []
    for label in LISTS:
        items = documented.items(label)
        if items:
            parts.append(f"**{label}**")
            parts.append("\n".join(f"* {f'`{name}`: ' if name else ''}{plain(said)}" for name, said in items.items()))
    return "\n\n".join(parts)
