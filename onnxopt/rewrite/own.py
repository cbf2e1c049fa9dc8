"""Load passes from outside of onnxopt: of a user's own file, of a module, or of what an installed package offers.

Code runs when it is loaded, so nothing is loaded that the user has not named; least of all is a package asked for its
passes because it happens to be installed.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeAlias, TypeGuard

from onnxopt.errors import OwnPassError, PassAuthorError, word
from onnxopt.records.rewrites import PassOrigin
from onnxopt.rewrite.blame import place_in, place_of, said, shown
from onnxopt.rewrite.own_checks import check_pass
from onnxopt.rewrite.registry import catalogue, registered_in
from onnxopt.rewrite.rule import Rewrite

GROUP = "onnxopt.passes"  # entry points of packages that offer passes
STEM = "onnxopt_own_pass_"  # in front of the module name of a file
NAMED = "name a .py file, a module, or what an installed package offers"

Named: TypeAlias = "str | Path | type[Rewrite]"


def load_own(named: Named | Iterable[Named]) -> tuple[type[Rewrite], ...]:
    """Load passes that a user has named.

    Args:
        named: each the path of a Python file, the name of an entry point of the group `onnxopt.passes`, the name of a
            module, or in Python the class of a pass.

    Returns:
        The classes in the order in which they were named and defined, each checked, and told where it came from.

    Raises:
        OwnPassError: something cannot be found or imported, registers nothing or a name that is taken, or is not made
            as a pass must be.
    """
    wanted = [named] if isinstance(named, str | Path | type) else list(named)
    loaded = [kind for one in {_key(one): one for one in wanted}.values() for kind in _loaded(one)]
    for kind in dict.fromkeys(loaded):
        check_pass(kind)
    taken: dict[str, type[Rewrite]] = dict(catalogue()) if loaded else {}
    for kind in dict.fromkeys(loaded):
        if kind.name in taken:
            other = taken[kind.name]
            owner = f"at {place_of(other)}" if other.origin is not None else "by onnxopt itself"
            what = f"the pass name {kind.name!r} is taken {owner}"
            raise OwnPassError(what, where=place_of(kind), hint="give the class another name")
        taken[kind.name] = kind
    return tuple(dict.fromkeys(loaded))


def _key(one: Named) -> object:
    """Return what is the same for two spellings of one file."""
    return Path(one).resolve() if _is_file(one) else one


def _is_file(one: Named) -> TypeGuard[str | Path]:
    """Tell whether the path of a file is meant; every other word is that of a package or a module."""
    return isinstance(one, Path) or (isinstance(one, str) and (one.endswith(".py") or "/" in one or "\\" in one))


def _loaded(one: Named) -> list[type[Rewrite]]:
    """Load what one name stands for, and say of each class where it came from."""
    if isinstance(one, type):
        return [_from(one, one.__module__ if _file_of(one) is None else "")]
    if not isinstance(one, str | Path):
        raise OwnPassError(f"{one!r} is no class of a pass", hint="give the class itself, or the path of its file")
    text = str(one)
    if _is_file(one):
        path = Path(text)
        return [_from(kind, path.name) for kind in _passes_of(_run_file(path), str(path))]
    offered = [entry for entry in entry_points(group=GROUP) if entry.name == text]
    if offered:
        return _of_entry(offered)
    return [_from(kind, text) for kind in _passes_of(_import(text), text)]


def _of_entry(offered: Sequence[EntryPoint]) -> list[type[Rewrite]]:
    """Load what a package offers under a name: a module, or one class in it."""
    owners = sorted({entry.dist.name if entry.dist else "?" for entry in offered})
    if len(owners) > 1:
        hint = "name the module of the one that you mean"
        raise OwnPassError(f"{' and '.join(owners)} both offer passes of that name", where=offered[0].name, hint=hint)
    entry = offered[0]
    owner = f"{entry.name} of {owners[0]} {entry.dist.version if entry.dist else ''}".strip()
    module = _import(entry.module)
    if not entry.attr:
        return [_from(kind, owner) for kind in _passes_of(module, entry.name)]
    kind = getattr(module, entry.attr, None)
    if not isinstance(kind, type):
        raise OwnPassError(f"{entry.module} has no class {entry.attr}", where=owner, hint="ask its maker")
    return [_from(kind, owner)]  # which need not be registered: it is named itself


def _from(kind: type, named: str) -> type[Rewrite]:
    """Say of a class where it came from; its file is told by name and content, never by its folder."""
    if not issubclass(kind, Rewrite):
        what, hint = f"{kind.__qualname__} is neither a Rule nor a Pass", "derive it from one of them"
        raise OwnPassError(what, where=place_of(kind), hint=hint)
    if catalogue().get(kind.name) is kind:
        raise OwnPassError(f"{kind.name} is a pass of onnxopt itself", hint="it runs where its target has it")
    file = _file_of(kind)
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file is not None else ""
    kind.origin = PassOrigin(named=named or (file.name if file else ""), file=file.name if file else "", sha256=digest)
    return kind


def _file_of(kind: type) -> Path | None:
    """Return the file of a class; None where it was typed into a notebook or a prompt."""
    try:
        file = Path(inspect.getfile(kind))
    except (OSError, TypeError):
        return None
    return file if file.is_file() else None


def _passes_of(module: ModuleType, label: str) -> list[type[Rewrite]]:
    """Return the passes that a module registers, in modules below it, or hands on from others."""
    own = registered_in(module.__name__)
    handed_on = [thing for thing in vars(module).values() if isinstance(thing, type) and _is_registered(thing)]
    found = list(dict.fromkeys([*own, *handed_on]))
    if not found:
        hint = "put @register of onnxopt.rewrite in front of its classes"
        raise OwnPassError("it registers no pass", where=label, hint=hint)
    return found


def _is_registered(kind: type) -> bool:
    return any(known is kind for known in registered_in(kind.__module__))


def _run_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own; what is run is what its hash is of."""
    if path.is_dir():
        raise OwnPassError("is a folder", where=str(path), hint=NAMED)
    try:
        source = path.read_bytes()
    except FileNotFoundError as error:
        raise OwnPassError("no such file", where=str(path), hint=NAMED) from error
    except OSError as error:
        raise OwnPassError(f"cannot be read ({error.strerror})", where=str(path)) from error
    if path.suffix != ".py":
        raise OwnPassError("is not a Python file", where=str(path), hint=NAMED)
    full = path.resolve()
    # one name for one content in one place, without dots: it is not inside of any package
    module = ModuleType(STEM + hashlib.sha256(bytes(full) + b"\0" + source).hexdigest()[:16])
    module.__file__ = str(full)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(full), "exec"), vars(module))  # noqa: S102 - the user has named it to be run
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise _not_imported(error, str(path), module.__name__) from error
    return module


def _import(name: str) -> ModuleType:
    """Import a module by its name."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise OwnPassError("is neither a file nor the name of a module", where=word(name) or "--pass", hint=NAMED)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):  # something that it imports is missing
            raise _not_imported(error, name, name.partition(".")[0]) from error
        offered = sorted({entry.name for entry in entry_points(group=GROUP)})
        known = f" (installed packages offer {', '.join(offered)})" if offered else ""
        if name in catalogue():
            what, hint = "is a pass of onnxopt itself", "it runs where its target has it; leave it out"
        else:
            what, hint = f"there is no module of that name{known}", "name a .py file, or install the package"
        raise OwnPassError(what, where=name, hint=hint) from error
    except (Exception, SystemExit) as error:
        raise _not_imported(error, name, name.partition(".")[0]) from error


def _not_imported(error: BaseException, label: str, root: str) -> OwnPassError:
    """Return the error of a file or a module that does not import, at the line that stopped it."""
    where = place_in(error, root) or label
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{shown(error.filename)}:{error.lineno}"
        error = SyntaxError(error.msg)  # its own words repeat file and line
    what = str(error) if isinstance(error, PassAuthorError) else f"does not import: {said(error)}"
    return OwnPassError(what, where=where, hint="mend it, or leave it out")
