"""No line of a docstring ends early in the middle of a sentence, as a careless re-wrap leaves it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("onnxopt", "passes", "models", "tools")
# A writer may break a little early; a line with room for this much more was torn.
ROOM = 22
WIDTH = 118

_BEGINS = re.compile(r"\||[*-] |\d+\. |(?:\*\*)?\w[\w .`*,()]*: |\w+:$")  # an entry of a list begins a line of its own


def torn(text: str, indent: int = 0) -> list[str]:
    """Return the lines of a docstring that end although the next word had plenty of room.

    Args:
        text: as it stands between its quotes.
        indent: columns in front of its first line.
    """
    lines = [" " * indent + text.splitlines()[0], *text.splitlines()[1:]] if text else []
    found: list[str] = []
    literal = -1  # indentation of what opened a literal block
    for line, after in pairwise(lines):
        depth, below = (len(one) - len(one.lstrip()) for one in (line, after))
        if line.strip() and depth <= literal:
            literal = -1
        if line.rstrip().endswith("::"):
            literal = depth
        if literal >= 0 or not line.strip() or not after.strip() or below < depth or _BEGINS.match(after.strip()):
            continue
        if line.rstrip().endswith(":") and below > depth:
            continue
        if len(line.rstrip()) + 1 + len(after.split()[0]) <= WIDTH - ROOM:
            found.append(line.strip())
    return found


def docstrings(path: Path) -> Iterator[tuple[str, int]]:
    """Give the docstrings of a file with the column behind their quotes."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        first = node.body[0] if isinstance(node, kinds) and node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            yield first.value.value, first.col_offset + len('"""')


def test_no_docstring_is_torn() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "templates" not in path.parts]
    lost = {(path.name, line) for path in files for text, column in docstrings(path) for line in torn(text, column)}
    assert files
    assert not lost


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("Say it.\n\n    The word\n    that follows had room for a while.\n", ["The word"]),
        ("Meets: graphs of one\n    exporter, whose axes are known.", ["Meets: graphs of one"]),
        ("Say it.\n\nArgs:\n    one: short.\n    two: short as well,\n        in a way.\n", ["two: short as well,"]),
        ("Say it::\n\n    x\n    y\n\nKeys:\n    one: short.\n    two: short.\n", []),
        (f"Say it.\n\n{'word ' * 22}\nthat follows.", []),
    ],
    ids=["sentence", "label", "entry", "literal", "full"],
)
def test_torn_lines_are_found(text: str, lines: list[str]) -> None:
    assert torn(text) == lines
