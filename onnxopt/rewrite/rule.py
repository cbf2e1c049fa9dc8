"""What a pass is: the two shapes of a pass file, the match it works on, and the builder of new nodes.

A `Rule` finds a small region by pattern, decides in `guard`, and builds the replacement in `rewrite`. A `Pass` changes
the graph as a whole in `run`. Both declare a numerics contract that the driver proves, match by match or for the whole
graph.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import onnx_ir as ir

from onnxopt.errors import PassAuthorError
from onnxopt.graph import (
    dims,
    is_constant,
    is_op,
    number,
    opset,
    rank,
    unknown_in,
)
from onnxopt.records.rewrites import PassOrigin
from onnxopt.rewrite.builder import Builder
from onnxopt.rewrite.built import check_built
from onnxopt.rewrite.match import Match, Refusal
from onnxopt.rewrite.patterns import Miss, Ops, Pat, State, Var, match, roots
from onnxopt.spec import Exact, Numerics

BROADCASTING = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "Equal", "Greater", "Less")


class Rewrite(ABC):
    """What every pass declares.

    Attributes:
        name: its name in pipelines, ledgers and messages.
        numerics: its contract.
        min_opset: the ai.onnx version that its new nodes need.
        enables: names of passes that profit from its result, for the catalogue.
        forms: what it can make of a region, the usual winner first, where that is a choice. A rule builds `op.form`; a
            pass over the whole graph has one form besides `AS_IS`.
        stage: canonicalize, fuse, prune, quantize or lower/<target>; set at registration from the folder. A pass from
            outside of onnxopt may say `canonicalize` or `fuse`, which is meant where it says nothing.
        behind_lowering: a pass of the quantize stage whose kernel makes steps of rounding errors, so that nothing that
            is proved to rounding errors may come after it.
        before: of a pass from outside of onnxopt, the pass in front of which it runs.
        after: the same for the pass behind which it runs; one of the two at most.
        origin: where a pass from outside of onnxopt came from, set when it is loaded; None for any other.
    """

    name: ClassVar[str]
    numerics: ClassVar[Numerics] = Exact()
    min_opset: ClassVar[int] = 1
    enables: ClassVar[tuple[str, ...]] = ()
    forms: ClassVar[tuple[str, ...]] = ()
    stage: ClassVar[str] = ""
    behind_lowering: ClassVar[bool] = False
    before: ClassVar[str] = ""
    after: ClassVar[str] = ""
    origin: ClassVar[PassOrigin | None] = None


class Rule(Rewrite):
    """Replace regions that match a pattern.

    Subclasses name pattern variables as parameters of `patterns`, `guard` and `rewrite`; each parameter receives the
    variable, or the value bound to it. `match` and `op` are always available.
    """

    keeps_shared: ClassVar[bool] = False  # True when recomputing a shared inner value costs nothing
    leaves_shared: ClassVar[bool] = False  # True when a match with a shared inner value has no need of the rewrite
    taken_apart_again: ClassVar[bool] = False  # True when a later pass replaces the result, whose range is not in use

    @abstractmethod
    def patterns(self, op: Ops, *variables: Any, **named: Any) -> Iterator[Pat]:
        """Yield one pattern per spelling of the root."""

    @abstractmethod
    def rewrite(self, op: Builder, *bound: Any, **named: Any) -> Any:
        """Build the replacement of the root's outputs: a value, or a tuple of one value or None per output."""

    def guard(self, match: Match, *bound: Any, **named: Any) -> None:
        """Refuse through `match.require` where the identity does not hold."""

    def class_of(self, match: Match) -> str:
        """Return the class of an accepted match, whose regions all get the same form."""
        del match
        return ""

    def forms_of(self, match: Match) -> tuple[str, ...]:
        """Return which of `forms` an accepted match can become."""
        del match
        return self.forms

    def compiled(self) -> list[Pat]:
        """Return the patterns with their variables in place."""
        names = [name for name in inspect.signature(self.patterns).parameters if name != "op"]
        return list(self.patterns(Ops(), *(Var(name, optional=name.startswith("maybe_")) for name in names)))

    def root_types(self) -> set[str]:
        """Return the operators at which a match can start."""
        return {root.op_type for pattern in self.compiled() for root in roots(pattern)}

    def find(self, node: ir.Node, patterns: Sequence[Pat], model: ir.Model, miss: Miss) -> Iterator[Match]:
        """Yield the matches rooted at a node, most specific spelling first."""
        for pattern in patterns:
            for root in roots(pattern):
                anchor = node.outputs[root.output or 0] if len(node.outputs) > (root.output or 0) else None
                if anchor is None or root.op_type != node.op_type:
                    continue
                for state in match(root, anchor, State(), miss):
                    nodes = _ordered(state.nodes)
                    spelled = tuple(member for member, _ in nodes)
                    yield Match(model, node, dict(state.values), dict(state.named), nodes, spelled=spelled)

    def decide(self, match: Match) -> None:
        """Check sharing and the guard; raises Refusal."""
        if opset(match.model) < self.min_opset:
            raise Refusal(f"opset {opset(match.model)}, needs {self.min_opset}")
        if not self.keeps_shared:
            for value in match.shared_values():
                reason = "an inner value is also used elsewhere or is a graph output"
                raise Refusal(reason, value.name or "", needless=self.leaves_shared)
        _require_narrow_scalars(match)
        call(self.guard, match)

    def build(self, match: Match, op: Builder) -> tuple[ir.Value | None, ...]:
        """Build the replacement; one value per output of the root, None for an output that nobody uses."""
        built = call(self.rewrite, match, op)
        outputs = built if isinstance(built, tuple) else (built,)
        if self.origin is not None:
            check_built(match, op, outputs)
        if len(outputs) > len(match.root.outputs):
            raise PassAuthorError(f"{self.name} built {len(outputs)} outputs for {len(match.root.outputs)}")
        padded = (*outputs, *[None] * (len(match.root.outputs) - len(outputs)))
        for old, new in zip(match.root.outputs, padded, strict=True):
            if new is None and (old.uses() or old.is_graph_output()):
                raise Refusal("another output of the node is used, which the new form does not have", old.name or "")
        for node in op.nodes:
            unknown = unknown_in(node, opset(match.model))
            if unknown:
                raise Refusal(f"opset {opset(match.model)} has no {unknown}")
        return padded


def _require_narrow_scalars(match: Match) -> None:
    """Refuse where a constant of one element gives what it meets more axes: rules read its number and drop its shape.

    A constant [1, 1, 1] makes [1, rows, columns] of a matrix.
    """
    for node in match.spelled:
        if not is_op(node, *BROADCASTING):
            continue
        ranks = [rank(value) for value in node.inputs if value is not None and not is_constant(value)]
        for value in node.inputs:
            if number(value) is None or not rank(value):
                continue
            wide = f"a constant of shape {list(dims(value) or ())} meets a value of"
            match.require(None not in ranks, f"{wide} unknown rank", node)
            most = max((one for one in ranks if one is not None), default=rank(value))
            match.require((rank(value) or 0) <= (most or 0), f"{wide} rank {most}, which gets more axes", node)


def _ordered(nodes: tuple[tuple[ir.Node, bool], ...]) -> tuple[tuple[ir.Node, bool], ...]:
    shared: dict[ir.Node, bool] = {}
    for node, free in nodes:
        shared[node] = shared.get(node, True) and free
    return tuple(shared.items())


def call(function: Callable[..., Any], match: Match, op: Builder | None = None) -> Any:
    """Call a rule's method with the bound values that its parameters name."""
    arguments: dict[str, Any] = {}
    for name in inspect.signature(function).parameters:
        if name == "match":
            arguments[name] = match
        elif name == "op":
            arguments[name] = op
        else:
            arguments[name] = match.values.get(name)
    return function(**arguments)


class Pass(Rewrite):
    """Change the graph as a whole."""

    touches_padding: ClassVar[bool] = False  # True when positions that the mask excludes may change
    makes_weights: ClassVar[bool] = False  # True when it makes new large tensors out of others

    def __init__(self) -> None:
        self.refusals: list[Refusal] = []  # what the last run left alone, for the ledger

    @abstractmethod
    def run(self, model: ir.Model) -> int:
        """Change the model in place; return the exact number of changes, 0 when run again."""

    def refuse(self, reason: str, where: ir.Value | ir.Node | None = None) -> None:
        """Say in the ledger why something was left alone."""
        self.refusals.append(Refusal(reason, (where.name or "") if where is not None else ""))
