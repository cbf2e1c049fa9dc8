"""The page of the rooms: each folder and module with the first line of its own docstring."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tools.docs.blocks import cell, code, table
from tools.docs.docstrings import parse

ROOT = Path(__file__).parents[2]
FOLDERS = ("onnxopt", "passes", "models")


def rooms() -> str:
    """Return a table per folder: what stands directly in it, folders first."""
    parts: list[str] = []
    for top in FOLDERS:
        for folder in _folders(ROOT / top):
            rows = [[code(name), cell(said)] for name, said in _entries(folder)]
            if rows:
                parts += [f"## `{folder.relative_to(ROOT)}/`", cell(_said(folder / "__init__.py"))]
                parts.append(table(["file", "what it is"], rows))
    return "\n\n".join(part for part in parts if part)


def _folders(top: Path) -> Iterator[Path]:
    """Give a folder and all packages in it; links lead to folders that are listed on their own."""
    yield top
    for inner in sorted(top.iterdir()):
        if inner.is_dir() and not inner.is_symlink() and (inner / "__init__.py").is_file():
            yield from _folders(inner)


def _entries(folder: Path) -> Iterator[tuple[str, str]]:
    for inner in sorted(folder.iterdir(), key=lambda path: (path.is_file(), path.name)):
        if inner.is_dir() and not inner.is_symlink() and (inner / "__init__.py").is_file():
            yield f"{inner.name}/", _said(inner / "__init__.py")
        elif inner.suffix == ".py" and inner.name != "__init__.py":
            yield inner.name, _said(inner)


def _said(file: Path) -> str:
    """Return the first line of a file's docstring; the file is read, not imported."""
    return parse(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").summary
