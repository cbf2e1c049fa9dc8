"""Read options from the tables of a TOML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from onnxopt.errors import InputError
from onnxopt.road.options import types_of

_T = TypeVar("_T")
_NAMES: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list of texts",
    dict: "a table",
}


def of_table(kind: type[_T], table: Mapping[str, Any], *, where: str, name: str = "") -> _T:
    """Make options of what a table says.

    Args:
        kind: a dataclass of options, or of such classes, each of which is a table of its own.
        table: as TOML has it; an empty text stands for nothing where nothing is the default.
        where: the file, for messages.
        name: of the table; empty for the file itself.

    Raises:
        InputError: an option is unknown, missing, or not of its type.
    """
    types = types_of(kind)
    shown = f"[{name}]" if name else "a recipe"
    known = fields(kind)  # type: ignore[arg-type]  # options are dataclasses
    defaults = {one.name: one.default for one in known if one.default_factory is MISSING}
    for key in table:
        if key not in types:
            raise InputError(f"{shown} has no option {key!r}", where=where, hint=f"it takes {', '.join(types)}")
    for key, default in defaults.items():
        if default is MISSING and key not in table:
            raise InputError(f"{shown} names no {key}", where=where, hint=f'write {key} = "…"')
    values = {
        key: None if value == "" and defaults.get(key, "") is None else _value(types[key], value, key, name, where)
        for key, value in table.items()
    }
    return kind(**values)


def _value(kind: Any, value: Any, key: str, name: str, where: str) -> Any:
    """Return a value of a table as its type has it."""
    inner = next((one for one in _choices(kind) if is_dataclass(one)), None)
    if inner is not None and isinstance(value, dict):
        return of_table(inner, value, where=where, name=key)  # type: ignore[arg-type]  # a class, not an object
    if _fits(kind, value):
        return value
    wanted = f"a table: [{key}]" if inner is not None else _wanted(kind)
    place = f"{key} in [{name}]" if name else key
    raise InputError(f"{place} is {value!r}", where=where, hint=f"write {wanted}")


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _fits(kind: Any, value: Any) -> bool:
    """Tell whether a value is of a type; true and false are no numbers."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(_fits(one, value) for one in get_args(kind))
    if origin is Literal:
        return value in get_args(kind)
    if origin is list:
        return isinstance(value, list) and all(_fits(get_args(kind)[0], one) for one in value)
    wanted = (int, float) if kind is float else origin or kind
    return isinstance(value, wanted) and not (isinstance(value, bool) and kind is not bool)


def _wanted(kind: Any) -> str:
    """Say what may be written for a type."""
    words: list[str] = []
    for one in _choices(kind):
        if get_origin(one) is Literal:
            words += [repr(word) for word in get_args(one)]
        elif one is not NoneType and (get_origin(one) or one) in _NAMES:
            words.append(_NAMES[get_origin(one) or one])
    return " or ".join(dict.fromkeys(words))
