"""The pattern language: a small term language over ONNX nodes and its complete matcher.

A pattern is a term. `op.Mul(x, scalar(0.5))` matches a Mul node with a constant one half on either side. Matching is
complete: every way to satisfy the term is tried (operand orders, alternatives, optional nodes), so a rule never depends
on the order in which an exporter wrote its operands. Values are matched along use-def edges, never by name.

The words at the end (`scalar`, `scaled`, `squared`, `linear`, ...) are the vocabulary of the rules: a new spelling of
an exporter becomes one more alternative here and every rule gains it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxopt.graph import STANDARD_DOMAINS, attribute, is_constant

COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Max", "Min", "Equal", "Sum", "BitwiseAnd", "BitwiseOr"})
SCALAR_RTOL = 1e-6  # float32 keeps 2**-24 = 6e-8 of a constant; exporters print some with 7 digits


class Pat:
    """A pattern. Build it with `Ops` and the words of this module."""


@dataclass(frozen=True, eq=False)
class Var(Pat):
    """Any value, bound to a name; the same name must be the same value everywhere. `None` values need `optional`."""

    name: str
    optional: bool = False


@dataclass(frozen=True, eq=False)
class Const(Pat):
    """A constant that satisfies a test.

    Attributes:
        accepts: the test on the value.
        text: what is expected, for messages.
        name: the value is bound to it when not empty.
    """

    accepts: Callable[[ir.Value], bool]
    text: str
    name: str = ""


@dataclass(frozen=True, eq=False)
class Op(Pat):
    """A node.

    Attributes:
        op_type: operator name.
        inputs: one pattern per input; None is an absent input.
        attributes: required attribute values; a callable is a test; defaults of the operator count.
        domain: operator domain.
        name: the node is bound to it when not empty.
        shared: the node may be used outside the match too; it then stays in the graph.
        rest: further inputs of the node do not matter.
        output: which output of the node the matched value is; None for any.
    """

    op_type: str
    inputs: tuple[Pat | None, ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    domain: str = ""
    name: str = ""
    shared: bool = False
    rest: bool = False
    output: int | None = 0


@dataclass(frozen=True, eq=False)
class Either(Pat):
    """The first alternatives first, but all of them."""

    options: tuple[Pat, ...]


class Ops:
    """Makes node patterns: `op.Add(x, y)`, `op.Softmax(x, axis=-1)`.

    Keywords with an underscore steer the match: `_name`, `_domain`, `_shared`, `_rest`, `_output`; all others are
    attributes.
    """

    def __getattr__(self, op_type: str) -> Callable[..., Op]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def make(*inputs: Pat | None, **options: Any) -> Op:
            steer = {key[1:]: options.pop(key) for key in list(options) if key.startswith("_")}
            return Op(op_type, inputs, tuple(sorted(options.items())), **steer)

        return make


@dataclass(frozen=True)
class State:
    """A partial match: bound values and nodes. States are never changed, only extended."""

    values: dict[str, ir.Value | None] = field(default_factory=dict)
    named: dict[str, ir.Node] = field(default_factory=dict)
    nodes: tuple[tuple[ir.Node, bool], ...] = ()

    def bind(self, name: str, value: ir.Value | None) -> State | None:
        """Return the state with one more binding, None when the name is bound to another value."""
        if name in self.values:
            return self if self.values[name] is value else None
        return State({**self.values, name: value}, self.named, self.nodes)

    def add(self, node: ir.Node, pattern: Op) -> State:
        """Return the state with one more matched node."""
        named = {**self.named, pattern.name: node} if pattern.name else self.named
        return State(self.values, named, (*self.nodes, (node, pattern.shared)))


@dataclass
class Miss:
    """The failed attempt that got furthest.

    Attributes:
        depth: how many nodes had matched.
        where: the value or node that did not fit.
        reason: what was expected there.
    """

    depth: int = -1
    where: str = ""
    reason: str = ""

    def note(self, state: State, where: str, reason: str) -> None:
        """Remember a failure when it got further than the earlier ones."""
        if len(state.nodes) > self.depth:
            self.depth, self.where, self.reason = len(state.nodes), where, reason


def match(pattern: Pat | None, value: ir.Value | None, state: State, miss: Miss) -> Iterator[State]:
    """Yield every way in which a value satisfies a pattern."""
    if pattern is None:
        if value is None:
            yield state
        else:
            miss.note(state, _label(value), "expected no input here")
        return
    if isinstance(pattern, Var):
        yield from _match_var(pattern, value, state, miss)
    elif isinstance(pattern, Either):
        for option in pattern.options:
            yield from match(option, value, state, miss)
    elif value is None:
        miss.note(state, "absent input", f"expected {describe(pattern)}")
    elif isinstance(pattern, Const):
        if is_constant(value) and pattern.accepts(value):
            bound = state.bind(pattern.name, value) if pattern.name else state
            if bound is not None:
                yield bound
        else:
            miss.note(state, _label(value), f"expected {pattern.text}")
    elif isinstance(pattern, Op):
        yield from _match_op(pattern, value, state, miss)


def _match_var(pattern: Var, value: ir.Value | None, state: State, miss: Miss) -> Iterator[State]:
    if value is None and not pattern.optional:
        miss.note(state, "absent input", f"expected a value for {pattern.name}")
        return
    bound = state.bind(pattern.name, value)
    if bound is not None:
        yield bound
    else:
        miss.note(state, _label(value), f"expected the value already seen as {pattern.name}")


def _match_op(pattern: Op, value: ir.Value, state: State, miss: Miss) -> Iterator[State]:
    node = value.producer()
    if node is None or node.op_type != pattern.op_type or not _same_domain(node.domain, pattern.domain):
        miss.note(state, _label(value), f"expected {pattern.op_type}, found {_kind(value)}")
        return
    if pattern.output is not None and value.index() != pattern.output:
        miss.note(state, _label(value), f"expected output {pattern.output} of {pattern.op_type}")
        return
    for key, expected in pattern.attributes:
        found = attribute(node, key)
        if not _attribute_fits(found, expected):
            miss.note(state, _label(value), f"attribute {key} is {found}, expected {_attribute_text(expected)}")
            return
    entered = state.add(node, pattern)
    for order in _orders(pattern, node):
        yield from _match_inputs(pattern.inputs, order, 0, entered, miss)


def _orders(pattern: Op, node: ir.Node) -> Iterator[Sequence[ir.Value | None]]:
    inputs: list[ir.Value | None] = list(node.inputs)
    while len(inputs) > len(pattern.inputs) and (pattern.rest or inputs[-1] is None):
        inputs.pop()
    inputs.extend([None] * (len(pattern.inputs) - len(inputs)))
    if len(inputs) != len(pattern.inputs):
        return
    yield inputs
    if node.op_type in COMMUTATIVE and len(inputs) == 2 and inputs[0] is not inputs[1]:
        yield inputs[::-1]


def _match_inputs(
    patterns: Sequence[Pat | None], values: Sequence[ir.Value | None], index: int, state: State, miss: Miss
) -> Iterator[State]:
    if index == len(patterns):
        yield state
        return
    for after in match(patterns[index], values[index], state, miss):
        yield from _match_inputs(patterns, values, index + 1, after, miss)


def _same_domain(found: str, expected: str) -> bool:
    return found == expected or (found in STANDARD_DOMAINS and expected in STANDARD_DOMAINS)


def _attribute_fits(found: Any, expected: Any) -> bool:
    if callable(expected):
        return bool(expected(found))
    if isinstance(expected, float) and isinstance(found, (int, float)):
        return math.isclose(found, expected, rel_tol=SCALAR_RTOL)
    if isinstance(expected, (tuple, list)) and found is not None:
        return tuple(found) == tuple(expected)
    return bool(found == expected)


def _attribute_text(expected: Any) -> str:
    return (getattr(expected, "__doc__", None) or expected.__name__) if callable(expected) else repr(expected)


def _label(value: ir.Value | None) -> str:
    if value is None:
        return "absent input"
    node = value.producer()
    return f"{node.op_type} {node.name or value.name}" if node is not None else f"value {value.name}"


def _kind(value: ir.Value) -> str:
    node = value.producer()
    if node is not None:
        return node.op_type
    return "a constant" if is_constant(value) else "a graph input"


def describe(pattern: Pat | None) -> str:
    """Name what a pattern expects, for messages."""
    if isinstance(pattern, Op):
        return pattern.op_type
    if isinstance(pattern, Const):
        return pattern.text
    if isinstance(pattern, Either):
        return " or ".join(dict.fromkeys(describe(option) for option in pattern.options))
    return "any value"


def roots(pattern: Pat) -> Iterator[Op]:
    """Yield the node patterns that can stand at the root; a bare variable or constant cannot."""
    if isinstance(pattern, Op):
        yield pattern
    elif isinstance(pattern, Either):
        for option in pattern.options:
            yield from roots(option)


# The vocabulary.
