"""The page of the rooms: a line for each, in the order in which a model travels, then each folder file by file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.test_house import ROOMS
from tools.docs.blocks import cell, code, table
from tools.docs.docstrings import parse

ROOT = Path(__file__).parents[2]
TOPS = ("passes", "models")  # rooms that lie at the top of the repository


def rooms() -> str:
    """Return a table of all rooms, and a table per folder of what stands directly in it, folders first."""
    parts = [table(["room", "what it is for"], [[code(_shown(room)), cell(_said(_face(room)))] for room in ROOMS])]
    for room in ROOMS:
        if _place(room).is_dir():
            for folder in _folders(_place(room)):
                parts += [f"## `{folder.relative_to(ROOT)}/`", cell(_said(folder / "__init__.py"))]
                if rows := [[code(name), cell(said)] for name, said in _entries(folder)]:
                    parts.append(table(["file", "what it is"], rows))
    return "\n\n".join(parts)


def _place(room: str) -> Path:
    return ROOT / room if room in TOPS else ROOT / "onnxopt" / room


def _face(room: str) -> Path:
    """Return the file whose docstring says what a room is for."""
    place = _place(room)
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _shown(room: str) -> str:
    return f"{room}/" if _place(room).is_dir() else f"{room}.py"


def _folders(top: Path) -> Iterator[Path]:
    """Give a folder and all packages in it."""
    yield top
    for inner in sorted(top.iterdir()):
        if (inner / "__init__.py").is_file():
            yield from _folders(inner)


def _entries(folder: Path) -> Iterator[tuple[str, str]]:
    for inner in sorted(folder.iterdir(), key=lambda path: (path.is_file(), path.name)):
        if (inner / "__init__.py").is_file():
            yield f"{inner.name}/", _said(inner / "__init__.py")
        elif inner.suffix == ".py" and inner.name != "__init__.py":
            yield inner.name, _said(inner)


def _said(file: Path) -> str:
    """Return the first line of a file's docstring; the file is read, not imported."""
    return parse(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").summary
