"""Lines of words: in a terminal parted between words within its width, in a pipe whole."""

from __future__ import annotations

import textwrap

from rich.console import Console

LABEL = 14  # columns of the word in front of a line of a summary


def print_words(console: Console, line: str, style: str | None = None, *, indent: int = LABEL) -> None:
    """Print a line.

    Args:
        console: where to.
        line: what to say; a word that is wider than a terminal, such as a path, stays whole to be copied.
        style: of the whole line.
        indent: columns that a terminal leaves in front of all but the first part.
    """
    parts = [line]
    if console.is_terminal:
        parts = textwrap.wrap(
            line,
            console.width,
            subsequent_indent=" " * min(indent, console.width // 3),
            break_long_words=False,
            break_on_hyphens=False,
        )
    for part in parts or [""]:
        console.print(part, style=style, markup=False, emoji=False, soft_wrap=True)
