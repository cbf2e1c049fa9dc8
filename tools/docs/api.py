"""The page of the public face, from the docstrings of what it hands on."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from tools.docs.docstrings import described, read

GROUPS: Mapping[str, Sequence[str]] = {
    "Make an artifact": ("optimize", "Target", "Workload", "Budget", "Event", "quiet"),
    "Run it": ("Model", "Artifact", "Session", "Batcher", "FixedShapes", "placement"),
    "Write text": ("Generator", "ContinuousBatcher", "Sampling"),
    "Compare": ("compare_models", "measure_perplexity"),
    "Errors": ("OnnxoptError", "InputError", "ExportError", "ProofError", "OwnPassError"),
}
FOR_PASSES = ("Rule", "Pass", "Match", "Builder", "Refusal", "register", "Exact", "Reassociated", "Lossy")
LONGEST_SIGNATURE = 88


def public_face() -> str:
    """Return the names of `onnxopt`, by what they are for."""
    parts: list[str] = []
    for title, names in GROUPS.items():
        parts.append(f"## {title}")
        parts += [_section("onnxopt", name) for name in names]
    return "\n\n".join(parts)


def face_of_passes() -> str:
    """Return the names of `onnxopt.rewrite`."""
    return "\n\n".join(_section("onnxopt.rewrite", name) for name in FOR_PASSES)


def _section(home: str, name: str) -> str:
    thing = getattr(importlib.import_module(home), name)
    documented = read(thing)
    parts = [f"### {name}", f"```python\n{signature_of(f'{home}.{name}', thing)}\n```"]
    parts += [documented.summary, described(documented)]
    if inspect.isclass(thing):
        made = vars(thing).get("__init__")  # where a class says what it is made of, if not in its own docstring
        parts += [described(read(made))] if made is not None and made.__doc__ else []
        parts += [_member(thing, inner) for inner in members(thing)]
    return "\n\n".join(part for part in parts if part)


def members(kind: type) -> list[str]:
    """Return the public methods and properties of a class in the order of its file; fields are attributes."""
    fields = {one.name for one in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    return [
        name
        for name, value in vars(kind).items()
        if not name.startswith("_") and name not in fields and _documented(value)
    ]


def _documented(value: Any) -> bool:
    inner = getattr(value, "__func__", getattr(value, "fget", value))
    return inspect.isfunction(inner) and bool(inner.__doc__)


def _member(kind: type, name: str) -> str:
    value = vars(kind)[name]
    if isinstance(value, property):
        return f"#### {kind.__name__}.{name}\n\n{read(value).summary}"
    function = getattr(value, "__func__", value)
    documented = read(function)
    shown = f"```python\n{signature_of(f'{kind.__name__}.{name}', function)}\n```"
    parts = [f"#### {kind.__name__}.{name}", shown, documented.summary, described(documented)]
    return "\n\n".join(part for part in parts if part)


def signature_of(name: str, thing: Any) -> str:
    """Return how something is called, on one line or with a line per parameter; an error is raised, not called."""
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return f"class {name}"
    found = inspect.signature(thing)
    parameters = [
        parameter
        for parameter in found.parameters.values()
        if parameter.name not in {"self", "cls"} and not parameter.name.startswith("_")
    ]
    words = _words(parameters)
    result = f" -> {_annotation(found.return_annotation)}" if not inspect.isclass(thing) else ""
    line = f"{name}({', '.join(words)}){result}"
    if len(line) <= LONGEST_SIGNATURE:
        return line
    inner = "".join(f"    {word},\n" for word in words)
    return f"{name}(\n{inner}){result}"


def _words(parameters: Sequence[inspect.Parameter]) -> list[str]:
    words: list[str] = []
    for index, parameter in enumerate(parameters):
        star = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if star and (index == 0 or parameters[index - 1].kind not in {parameter.kind, parameter.VAR_POSITIONAL}):
            words.append("*")
        mark = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
        word = f"{mark}{parameter.name}"
        if parameter.annotation is not parameter.empty:
            word += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            word += f" = {_default(parameter.default)}"
        words.append(word)
    return words


def _annotation(annotation: Any) -> str:
    """Return an annotation as it is written; modules import it from `__future__`, so that it is a string."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _default(value: Any) -> str:
    """Return a default that is the same on every machine: that of a factory or an object is left open."""
    if "<" in repr(value) or dataclasses.is_dataclass(value):
        return "..."
    return repr(value)
