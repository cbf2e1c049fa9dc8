"""The catalogue of passes: every class decorated with `register`, by name."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from onnxopt.errors import InputError, PassAuthorError

if TYPE_CHECKING:
    from onnxopt.rewrite.rule import Rewrite

_PACKAGE = "onnxopt.passes"
_registered: dict[str, type[Rewrite]] = {}
_outside: dict[tuple[str, str], type[Rewrite]] = {}  # by module and class; they run where a user names them

Cls = TypeVar("Cls", bound="type[Rewrite]")
Step: TypeAlias = "str | type[Rewrite]"  # of a pipeline: a name of the catalogue, or a class from outside of it


def register(cls: Cls) -> Cls:
    """Add a pass to the catalogue under its name; its stage is the folder of its file.

    A pass from outside of onnxopt is remembered apart from the catalogue, and runs where a user names it or its file.

    Raises:
        PassAuthorError: another file registered the name, or the class lacks one.
    """
    name = getattr(cls, "name", "")
    if not name:
        raise PassAuthorError(f"{cls.__module__}.{cls.__name__} has no name")
    if not cls.__module__.startswith(f"{_PACKAGE}."):
        _outside.pop((cls.__module__, cls.__qualname__), None)  # loaded anew, it is the last one again
        _outside[cls.__module__, cls.__qualname__] = cls
        return cls
    known = _registered.get(name)
    if known is not None and known.__module__ != cls.__module__:
        raise PassAuthorError(f"the pass name {name!r} is registered by {known.__module__} and by {cls.__module__}")
    cls.stage = "/".join(cls.__module__.removeprefix(f"{_PACKAGE}.").split(".")[:-1])
    _registered[name] = cls
    return cls


def registered_in(module: str) -> list[type[Rewrite]]:
    """Return the passes from outside of onnxopt that a module has registered, or one below it, in their order."""
    return [cls for (home, _), cls in _outside.items() if home == module or home.startswith(f"{module}.")]


def load_all() -> None:
    """Import every pass file."""
    package = importlib.import_module(_PACKAGE)
    for info in pkgutil.walk_packages(package.__path__, f"{_PACKAGE}."):
        importlib.import_module(info.name)


def catalogue() -> dict[str, type[Rewrite]]:
    """Return every pass of the tool by name, in the order of stages and names."""
    load_all()
    return dict(sorted(_registered.items(), key=lambda item: (_STAGES.index(item[1].stage.split("/")[0]), item[0])))


_STAGES = ("canonicalize", "fuse", "prune", "quantize", "lower")


def name_of(step: Step) -> str:
    """Return the name of a step of a pipeline."""
    return step if isinstance(step, str) else step.name


def get(name: Step, *options: Any) -> Rewrite:
    """Return a new instance of a pass, made with its options: a plan, for those that carry one out.

    Args:
        name: of a pass of the catalogue; or the class of any other.
        options: what it is made with.

    Raises:
        InputError: no pass has the name.
    """
    if not isinstance(name, str):
        return name(*options)
    if name not in _registered:
        load_all()
    if name not in _registered:
        near = (
            ", ".join(sorted(known for known in _registered if set(known.split("-")) & set(name.split("-")))) or "none"
        )
        raise InputError(f"there is no pass {name!r}", hint=f"`onnxopt passes` lists them (near: {near})")
    return _registered[name](*options)
