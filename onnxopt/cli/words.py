"""Lines of words: in a terminal parted between words within its width, in a pipe whole."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

LABEL = 14  # columns of the word in front of a line of a summary
LEAST_WIDTH = 10  # of a terminal: some say that they have none


def print_words(console: Console, line: str, style: str | None = None, *, indent: int = LABEL) -> None:
    """Print a line.

    Args:
        console: where to.
        line: what to say; a word that is wider than a terminal, such as a path, stays whole to be copied.
        style: of the whole line.
        indent: columns that a terminal leaves in front of all but the first part.
    """
    if not console.is_terminal:
        _print(console, line, style)
        return
    console.width = width = max(console.width, LEAST_WIDTH)
    inner = " " * min(indent, width // 3)
    for own in line.split("\n"):
        parts = [own]  # as it is, blanks and all, where there is room for it
        if len(own) > width:
            parts = textwrap.wrap(own, width, subsequent_indent=inner, break_long_words=False, break_on_hyphens=False)
        for part in parts or [""]:
            _print(console, part, style)


def print_list(console: Console, head: str, entries: Sequence[str]) -> None:
    """Print entries behind what they belong to, on one line: in a terminal as many as it has room for.

    Args:
        console: where to.
        head: what stands in front of them.
        entries: the first ones matter most.
    """
    line = f"{head}{', '.join(entries)}"
    if console.is_terminal and len(line) > console.width:
        shown = list(entries)
        while shown and len(line) > console.width:
            shown.pop()
            line = f"{head}{', '.join([*shown, '...'])}"
    _print(console, line.rstrip())


def near(path: Path) -> Path:
    """Return a path as one would type it from here: from this folder on where it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _print(console: Console, line: str, style: str | None = None) -> None:
    console.print(line, style=style, markup=False, emoji=False, soft_wrap=True)
