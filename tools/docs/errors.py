"""The table of the errors, from their classes."""

from __future__ import annotations

from collections.abc import Iterator

from onnxopt.errors import OnnxoptError
from tools.docs.blocks import cell, code, table
from tools.docs.docstrings import read


def errors_table() -> str:
    """Return the errors of the public face that a user can meet: class, exit code of the command line, meaning."""
    rows = [
        [code(kind.__name__), str(kind.exit_code), cell(read(kind).summary)]
        for kind in _kinds(OnnxoptError)
        if kind.__module__ == OnnxoptError.__module__  # the others are special cases inside
    ]
    return table(["error", "exit code", "when"], rows)


def _kinds(kind: type[OnnxoptError]) -> Iterator[type[OnnxoptError]]:
    yield kind
    for inner in kind.__subclasses__():
        yield from _kinds(inner)
