"""What is written down of each option, for those who show it: signatures, docstrings, the help of the command line."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from onnxopt.road.options import PLACES, STAGES, Stage

WIDTH = 120  # of a line of a docstring
_ENTRY = re.compile(r"^(\w+): (.*)$", re.DOTALL)
_OPTIONS = re.compile(r"^( *)\*\*options: .*\n(?:\1 +.*\n)*", re.MULTILINE)

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Described:
    """An option with what is written down of it.

    Attributes:
        name: as it is given.
        annotation: its type, as it is written.
        default: what holds when it is not given.
        words: what it means, on one line, from a lower-case letter to a full stop.
    """

    name: str
    annotation: str
    default: Any
    words: str


def described(kind: type[Stage]) -> Iterator[Described]:
    """Yield the options of a stage under their own names, as in the table of a recipe."""
    words = attributes(inspect.getdoc(kind) or "")
    for one in fields(kind):  # type: ignore[arg-type]  # every stage is a dataclass
        yield Described(one.name, str(one.type), one.default, words.get(one.name, ""))


def keywords() -> Iterator[Described]:
    """Yield the options of a run under the names that `optimize` has for them."""
    known = {stage: {one.name: one for one in described(kind)} for stage, kind in STAGES.items()}
    for keyword, (stage, name) in PLACES.items():
        one = known[stage][name]
        yield Described(keyword, one.annotation, one.default, one.words)


def spelled_out(function: _Function) -> _Function:
    """Show the options of a run in the signature and the docstring of a function that takes them as `**options`."""
    options = list(keywords())
    own = inspect.signature(function)
    named = [one for one in own.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    added = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.annotation)
        for one in options
    ]
    function.__signature__ = own.replace(parameters=[*named, *added])  # type: ignore[attr-defined]  # functions take any
    function.__doc__ = _OPTIONS.sub(
        lambda found: "".join(f"{_entry(one, found.group(1))}\n" for one in options), function.__doc__ or ""
    )
    return function


def _entry(option: Described, indent: str) -> str:
    return textwrap.fill(
        f"{option.name}: {option.words}",
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def attributes(text: str) -> dict[str, str]:
    """Return what the docstring of a class says of each attribute; nothing where Python has left docstrings out."""
    _, _, said = text.partition("Attributes:\n")
    listed, *_ = re.split(r"\n(?=\S)", said, maxsplit=1)
    entries = re.split(r"\n(?! )", textwrap.dedent(listed).strip())
    found = (_ENTRY.match(entry) for entry in entries)
    return {one.group(1): " ".join(one.group(2).split()) for one in found if one}
