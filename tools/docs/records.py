"""The schema of what an artifact says of itself, from the classes of its records."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from onnxopt.artifact import golden_texts, io_json, io_parts
from onnxopt.compress.report import Compression
from onnxopt.distill.settings import Distillation
from onnxopt.records.manifest import Manifest
from onnxopt.records.measurements import Measurements
from tools.docs.blocks import cell, code, table
from tools.docs.docstrings import read

Kind = type[Any]


def manifest() -> str:
    """Return the records of `manifest.json`."""
    return schema(Manifest)


def measurements() -> str:
    """Return the records of `measurements.json`."""
    return schema(Measurements, apart=_reachable(Manifest))


def reports() -> str:
    """Return the records that stand beside what `compress` and `distill` write."""
    return "\n\n".join([schema(Compression, apart=_reachable(Manifest)), schema(Distillation)])


def io_keys() -> str:
    """Return the keys of `io.json`, of `golden/texts.json` and of an encoder-decoder's `io.json`."""
    kinds = {"An encoder-decoder": io_parts, "Golden texts": golden_texts}
    parts = (f"### {title}\n\n{read(module).summary}\n\n{read(module).body}" for title, module in kinds.items())
    return "\n\n".join([read(io_json).body, *parts])


def schema(kind: Kind, apart: Sequence[Kind] = ()) -> str:
    """Return a section per record: the one given, then those that its fields hold, in the order in which they appear.

    Args:
        kind: the record that is the file.
        apart: records that are told elsewhere.
    """
    return "\n\n".join(_section(one) for one in _reachable(kind) if one not in apart)


def _section(kind: Kind) -> str:
    documented = read(kind)
    said = {name: text for one in reversed(kind.__mro__) for name, text in read_own(one).items()}
    rows = [[code(name), code(_type(hint)), cell(said.get(name, ""))] for name, hint in fields(kind)]
    return "\n\n".join([f"### {kind.__name__}", documented.summary, table(["field", "type", "what it is"], rows)])


def read_own(kind: Kind) -> dict[str, str]:
    """Return what the docstring of a class itself says of its attributes."""
    return read(kind).items("Attributes") if "__doc__" in vars(kind) and kind.__doc__ else {}


def fields(kind: Kind) -> Iterator[tuple[str, Any]]:
    """Give the fields that are written, with their types."""
    hints = typing.get_type_hints(kind)
    if issubclass(kind, BaseModel):
        written = [name for name, field in kind.model_fields.items() if not field.exclude]
        own = inspect.get_annotations(kind)  # what a record inherits comes last, as in its file
        yield from ((name, hints[name]) for name in sorted(written, key=lambda name: name not in own))
    else:
        yield from ((field.name, hints[field.name]) for field in dataclasses.fields(kind))


def _reachable(kind: Kind) -> list[Kind]:
    """Return a record and all records inside it, each once."""
    found = [kind]
    for one in found:  # grows while it is walked
        for _, hint in fields(one):
            found += [inner for inner in _records_in(hint) if inner not in found]
    return found


def _records_in(hint: Any) -> Iterator[Kind]:
    if inspect.isclass(hint) and typing.get_origin(hint) is None:
        if issubclass(hint, BaseModel) or dataclasses.is_dataclass(hint):
            yield hint
        return
    for inner in typing.get_args(hint):
        yield from _records_in(inner)


def _type(hint: Any) -> str:
    """Write a type for a person who reads JSON."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(f'"{one}"' if isinstance(one, str) else str(one) for one in inner)
    if origin in {typing.Union, types.UnionType}:
        return " | ".join("null" if one is type(None) else _type(one) for one in inner)
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    if origin is not None and len(inner) == 2:
        return "object" if inner[1] is Any else f"object of {_type(inner[1])}"
    if origin is not None:
        return _type(origin)
    return {str: "string", int: "int", float: "float", bool: "bool"}.get(hint, getattr(hint, "__name__", "any"))
