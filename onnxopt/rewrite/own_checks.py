"""See that a pass from outside of onnxopt is made as a pass must be, before it meets a graph.

What the driver would trip over later, or what would silently never match, is said here at its line.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from onnxopt.errors import OwnPassError, word
from onnxopt.rewrite.blame import MEND, blamed, place_of
from onnxopt.rewrite.patterns import Const, Either, Op, Ops, Pat, Var, roots
from onnxopt.rewrite.rule import Pass, Rewrite, Rule
from onnxopt.spec import Exact, Lossy, Reassociated

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # names of nodes and folders are made of it
STAGES = ("canonicalize", "fuse")
ALWAYS_THERE = {"match", "op"}
BY_NAME = ("patterns", "guard", "rewrite")  # methods whose parameters name what they want


def check_pass(kind: type[Rewrite]) -> None:
    """Check what a class declares, that it can be made, and the signatures of its methods.

    Args:
        kind: whose origin is known.

    Raises:
        OwnPassError: it is not made as a pass must be.
    """
    if not issubclass(kind, Rule | Pass):
        raise _wrong(kind, f"{kind.__qualname__} is neither a Rule nor a Pass", "derive it from one of them")
    _check_facts(kind)
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    if missing:
        raise _wrong(kind, f"{kind.name} has no {' and no '.join(missing)}", "write it")
    try:
        inspect.signature(kind).bind()
    except TypeError as error:
        raise _wrong(kind, f"{kind.name} cannot be made without arguments: {error}", "leave them out") from error
    with blamed(kind):
        step = kind()
    if isinstance(step, Rule):
        _check_calls(step, Rule)
        _check_rule(step)
    elif isinstance(step, Pass):
        _check_calls(step, Pass)
        if not isinstance(getattr(step, "refusals", None), list):
            raise _wrong(kind, f"{kind.name} has no list of refusals", "call super().__init__() in its __init__")


def _check_facts(kind: type[Rewrite]) -> None:
    """Check what a class says of itself."""
    name: object = getattr(kind, "name", "")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        what = f"the name of {kind.__qualname__} is {name!r}"
        raise _wrong(kind, what, "give it one of small letters, digits and single hyphens, such as fuse-my-gate")
    numerics: object = kind.numerics
    if not isinstance(numerics, Exact | Reassociated | Lossy):
        what = f"numerics of {name} is {numerics!r}"
        raise _wrong(kind, what, "write Exact(), Reassociated(rtol, atol) or Lossy(metric, floor)")
    least: object = kind.min_opset
    if not isinstance(least, int) or isinstance(least, bool) or least < 1:
        raise _wrong(kind, f"min_opset of {name} is {least!r}", "write the opset that its new nodes need, such as 17")
    forms: object = kind.forms
    if not isinstance(forms, tuple) or not all(isinstance(form, str) for form in forms):
        raise _wrong(kind, f"forms of {name} is {forms!r}", 'write a tuple of names, such as ("one", "other")')
    if kind.stage not in ("", *STAGES):
        what = f"the stage of {name} is {kind.stage!r}"
        raise _wrong(kind, what, f"passes from outside run in {' or '.join(STAGES)}")
    if kind.before and kind.after:
        raise _wrong(kind, f"{name} names a pass before and one after", "name one of the two")


def _check_calls(step: Rewrite, base: type[Rewrite]) -> None:
    """Check that the driver can call each method that a class has in place of its base's.

    A method of its own may by chance have the name of one that the driver calls, such as `find` or `build`.
    """
    kind = type(step)
    for name, inherited in vars(base).items():
        if name in BY_NAME or name.startswith("_") or not inspect.isfunction(inherited):
            continue
        if inspect.getattr_static(kind, name) is inherited:
            continue
        wanted = list(inspect.signature(inherited).parameters.values())[1:]
        try:
            inspect.signature(getattr(step, name)).bind(*(None for one in wanted if one.default is one.empty))
        except (TypeError, ValueError) as error:
            asked = ", ".join(["self", *(one.name for one in wanted)])
            what = f"{name} of {kind.name} cannot be called as it is by onnxopt"
            raise _wrong(kind, what, f"write def {name}({asked}), or give it another name", name) from error


def _check_rule(rule: Rule) -> None:
    """Check that a rule has patterns, and that its methods ask for what these bind."""
    kind = type(rule)
    for name in BY_NAME:
        if not callable(getattr(rule, name)):
            raise _wrong(kind, f"{name} of {kind.name} is no method", f"write def {name}(self, ...)")
    asked = _parameters(rule.patterns, kind, "patterns")
    if asked[:1] != ["op"]:
        hint = "write def patterns(self, op, x, ...): op makes nodes, the others are variables"
        raise _wrong(kind, f"the first parameter of patterns of {kind.name} is not op", hint, "patterns")
    with blamed(kind):
        made: object = rule.patterns(Ops(), *(Var(name, optional=name.startswith("maybe_")) for name in asked[1:]))
        if not isinstance(made, Iterable):
            what = f"patterns of {kind.name} gives {type(made).__name__}"
            raise _wrong(kind, what, "yield a pattern for each spelling", "patterns")
        patterns = list(made)
    if not patterns:
        raise _wrong(kind, f"patterns of {kind.name} yields nothing", "yield a pattern for each spelling", "patterns")
    bound = {name for pattern in patterns for name in _bound(pattern, kind)}
    if not all(next(roots(pattern), None) for pattern in patterns):
        hint = "begin with a node, such as op.Add(x, y)"
        raise _wrong(kind, f"a pattern of {kind.name} begins at no operator", hint, "patterns")
    methods: tuple[tuple[str, Callable[..., Any]], ...] = (("guard", rule.guard), ("rewrite", rule.rewrite))
    for name, method in methods:
        if getattr(kind, name) is getattr(Rule, name):
            continue
        for parameter in _parameters(method, kind, name):
            if parameter == "op" and name == "guard":
                raise _wrong(kind, f"guard of {kind.name} takes op", "build in rewrite; guard decides", name)
            if parameter not in bound | ALWAYS_THERE:
                what = f"{name} of {kind.name} takes {parameter}, which its patterns do not bind"
                raise _wrong(kind, what, f"they bind {', '.join(sorted(bound)) or 'nothing'}", name)


def _parameters(method: Callable[..., Any], kind: type[Rewrite], name: str) -> list[str]:
    """Return the parameters of a method that is called by their names."""
    found = inspect.signature(method).parameters.values()
    for one in found:
        if one.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            what = f"{name} of {kind.name} takes {one}"
            raise _wrong(kind, what, "name each variable as a parameter of its own", name)
    return [one.name for one in found]


def _bound(pattern: object, kind: type[Rewrite]) -> Iterator[str]:
    """Yield the names that a pattern binds values to; what is no pattern would match nothing, and is said."""
    if isinstance(pattern, Var):
        yield pattern.name
    elif isinstance(pattern, Const):
        yield from [pattern.name] if pattern.name else []
    elif isinstance(pattern, Either):
        for option in pattern.options:
            yield from _bound(option, kind)
    elif isinstance(pattern, Op):
        for given in pattern.inputs:
            yield from _bound(given, kind) if given is not None else ()
    elif not isinstance(pattern, Pat):
        what = f"{word(repr(pattern))} is no pattern, and stands in one of {kind.name}"
        raise _wrong(kind, what, "write scalar(0.5) for a number, constant() for any constant", "patterns")


def _wrong(kind: type[Rewrite], what: str, hint: str = MEND, method: str = "") -> OwnPassError:
    return OwnPassError(what, where=place_of(kind, method), hint=hint)
