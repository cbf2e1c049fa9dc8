"""The catalogue of passes: every class decorated with `register`, by name."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, TypeVar

from onnxopt.errors import InputError, PassAuthorError

if TYPE_CHECKING:
    from onnxopt.rewrite.rule import Rewrite

_PACKAGE = "onnxopt.passes"
_registered: dict[str, type[Rewrite]] = {}

Cls = TypeVar("Cls", bound="type[Rewrite]")


def register(cls: Cls) -> Cls:
    """Add a pass to the catalogue under its name; its stage is the folder of its file.

    Raises:
        PassAuthorError: another file registered the name, or the class lacks one.
    """
    name = getattr(cls, "name", "")
    if not name:
        raise PassAuthorError(f"{cls.__module__}.{cls.__name__} has no name")
    known = _registered.get(name)
    if known is not None and known.__module__ != cls.__module__:
        raise PassAuthorError(f"the pass name {name!r} is registered by {known.__module__} and by {cls.__module__}")
    if cls.__module__.startswith(f"{_PACKAGE}."):
        cls.stage = "/".join(cls.__module__.removeprefix(f"{_PACKAGE}.").split(".")[:-1])
    _registered[name] = cls
    return cls


def load_all() -> None:
    """Import every pass file."""
    package = importlib.import_module(_PACKAGE)
    for info in pkgutil.walk_packages(package.__path__, f"{_PACKAGE}."):
        importlib.import_module(info.name)


def catalogue() -> dict[str, type[Rewrite]]:
    """Return every pass of the tool by name, in the order of stages and names."""
    load_all()
    own = {name: cls for name, cls in _registered.items() if cls.__module__.startswith(f"{_PACKAGE}.")}
    return dict(sorted(own.items(), key=lambda item: (_STAGES.index(item[1].stage.split("/")[0]), item[0])))


_STAGES = ("canonicalize", "fuse", "prune", "quantize", "lower")


def get(name: str, *options: Any) -> Rewrite:
    """Return a new instance of a pass, made with its options: a plan, for those that carry one out.

    Raises:
        InputError: no pass has the name.
    """
    if name not in _registered:
        load_all()
    if name not in _registered:
        near = (
            ", ".join(sorted(known for known in _registered if set(known.split("-")) & set(name.split("-")))) or "none"
        )
        raise InputError(f"there is no pass {name!r}", hint=f"`onnxopt passes` lists them (near: {near})")
    return _registered[name](*options)
