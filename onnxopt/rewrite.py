"""What a pass is: the two shapes of a pass file, the match it works on, and the builder of new nodes.

A `Rule` finds a small region by pattern, decides in `guard`, and builds the replacement in `rewrite`. A `Pass` changes
the graph as a whole in `run`. Both declare a numerics contract that the driver proves, match by match or for the whole
graph.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxopt.errors import PassAuthorError
from onnxopt.graph import (
    CONTRIB,
    PASS_KEY,
    Region,
    constant,
    constant_value,
    dims,
    is_constant,
    is_op,
    known_dims,
    number,
    opset,
    rank,
    region,
    unknown_in,
)
from onnxopt.model import Array
from onnxopt.patterns import Miss, Ops, Pat, State, Var, match, roots
from onnxopt.registry import register
from onnxopt.spec import Exact, Lossy, Numerics, Reassociated

__all__ = [
    "AS_IS",
    "Builder",
    "Exact",
    "Lossy",
    "Match",
    "Numerics",
    "Pass",
    "Reassociated",
    "Refusal",
    "Rewrite",
    "Rule",
    "register",
]


BROADCASTING = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "Equal", "Greater", "Less")
ALLOWS_ZERO = 14  # the opset since which Reshape knows the attribute
READS_A_PART = 15  # the opset since which Shape knows start and end
AS_IS = "as it is"  # the form that a pass leaves alone


class Refusal(Exception):  # noqa: N818 - a decision, not an error
    """A guard's decision that the identity does not hold here; the reason is for the user.

    Args:
        reason: why.
        where: the value or node that did not fit.
        needless: nothing is missed: the region has the wanted form already, or belongs to another pass.
    """

    def __init__(self, reason: str, where: str = "", *, needless: bool = False) -> None:
        self.reason = reason
        self.where = where
        self.needless = needless
        super().__init__(f"{where}: {reason}" if where else reason)


@dataclass
class Match:
    """A region that has the shape of a pattern.

    Attributes:
        model: the model it lies in.
        root: the node whose outputs are replaced.
        values: what the pattern's variables are bound to.
        named: nodes bound by `_name`.
        nodes: the nodes of the region and whether each may be shared.
        facts: what `guard` found out for `rewrite`.
        probes: arrays that the replaced region must also be compared on, besides captured and random ones.
        spelled: the nodes that the pattern names; a rule may take others into the region.
    """

    model: ir.Model
    root: ir.Node
    values: dict[str, ir.Value | None]
    named: dict[str, ir.Node]
    nodes: tuple[tuple[ir.Node, bool], ...]
    facts: dict[str, Any] = field(default_factory=dict)
    probes: tuple[dict[ir.Value, Array], ...] = ()
    spelled: tuple[ir.Node, ...] = ()

    def require(self, condition: object, reason: str, where: ir.Value | ir.Node | None = None) -> None:
        """Refuse with a reason unless the condition holds."""
        if not condition:
            raise Refusal(reason, (where.name or "") if where is not None else "")

    def needs(self, condition: object, reason: str) -> None:
        """Leave the region alone unless the condition holds; nothing is missed by that, so no report mentions it."""
        if not condition:
            raise Refusal(reason, needless=True)

    def number(self, name: str) -> float:
        """Return the number of a bound scalar constant."""
        found = number(self.values[name])
        if found is None:
            raise PassAuthorError(f"{name} is not bound to a scalar constant")
        return found

    def array(self, name: str) -> Array:
        """Return the array of a bound constant."""
        found = constant(self.values[name])
        if found is None:
            raise PassAuthorError(f"{name} is not bound to a constant")
        return found

    def region(self) -> Region:
        """Return the matched nodes, bounded."""
        return region([node for node, _ in self.nodes], self.root.outputs)

    def shared_values(self) -> Iterator[ir.Value]:
        """Yield inner values that something outside the match uses."""
        members = {node for node, _ in self.nodes}
        free = {node for node, shared in self.nodes if shared} | {self.root}
        for node in dict.fromkeys(node for node, _ in self.nodes):
            if node in free:
                continue
            for value in node.outputs:
                if value.is_graph_output() or any(use.node not in members for use in value.uses()):
                    yield value


class Builder:
    """Builds the nodes of a replacement, detached from any graph until the proof has passed.

    `op.Gelu(x, approximate="tanh")` makes a node and returns its output. `_domain` chooses another operator domain; all
    other keywords are attributes, and None leaves one out.
    """

    def __init__(self, model: ir.Model, prefix: str, pass_name: str, form: str = "") -> None:
        self.model = model
        self.form = form
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self._prefix = prefix
        self._pass_name = pass_name

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def make(*inputs: ir.Value | None, _domain: str = "", **attributes: Any) -> ir.Value:
            return self.node(op_type, inputs, attributes, domain=_domain)[0]

        return make

    def contrib(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Make a node of ONNX Runtime's own domain."""
        return self.node(op_type, inputs, attributes, domain=CONTRIB)[0]

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        *,
        domain: str = "",
        outputs: int = 1,
    ) -> tuple[ir.Value, ...]:
        """Make a node and return all its outputs."""
        name = f"{self._prefix}/{self._pass_name}/{op_type}_{len(self.nodes)}"
        used = list(inputs)
        while used and used[-1] is None:
            used.pop()
        given = {key: value for key, value in attributes.items() if value is not None}
        node = ir.node(op_type, used, given, domain=domain, num_outputs=outputs, name=name)
        node.metadata_props[PASS_KEY] = self._pass_name
        for index, value in enumerate(node.outputs):
            value.name = f"{name}_output_{index}"
        self.nodes.append(node)
        return tuple(node.outputs)

    def constant(self, array: Array, name: str) -> ir.Value:
        """Make an initializer.

        Args:
            array: its data; kept in row-major order.
            name: the role it plays, part of its name in the graph; a number is added where one role is played twice.
        """
        full = f"{self._prefix}/{self._pass_name}/{name}"
        if any(value.name == full for value in self.initializers):
            full = f"{full}_{len(self.initializers)}"
        value = constant_value(ir.tensor(np.asarray(array, order="C"), name=full), full)
        self.initializers.append(value)
        return value

    def ints(self, values: Sequence[int], name: str) -> ir.Value:
        """Make an int64 initializer of rank 1."""
        return self.constant(np.array(values, dtype=np.int64), name)

    def reshape(self, value: ir.Value, wanted: Sequence[int | str], name: str) -> ir.Value:
        """Reshape a value to sizes and named axes.

        An axis that is read from an input may be 0 long, which Reshape would take for "as it was" (from opset 14 on it
        can be told).

        Raises:
            Refusal: no graph input has a wanted axis, or a wanted size is 0, beside which none can be inferred.
        """
        if 0 in wanted:
            raise Refusal("the tensor is empty")
        read = sum(isinstance(dim, str) for dim in wanted) > 1 and opset(self.model) >= ALLOWS_ZERO
        return self.node("Reshape", [value, self.dimensions(wanted, name)], {"allowzero": 1 if read else None})[0]

    def dimensions(self, wanted: Sequence[int | str], name: str) -> ir.Value:
        """Make the int64 [n] value of a shape.

        Sizes become constants; named axes are read from a graph input that has them. With one named axis at most the
        shape is a constant with -1 in its place, so use the result for Reshape only.

        Raises:
            Refusal: no graph input has a wanted axis.
        """
        named = [dim for dim in wanted if isinstance(dim, str)]
        if len(named) <= 1:
            return self.ints([-1 if isinstance(dim, str) else dim for dim in wanted], name)
        parts: list[ir.Value] = []
        index = 0
        while index < len(wanted):
            dim = wanted[index]
            if isinstance(dim, int):
                stop = next((i for i in range(index, len(wanted)) if isinstance(wanted[i], str)), len(wanted))
                parts.append(self.ints([int(d) for d in wanted[index:stop]], f"{name}_{index}"))
            else:
                source, axis, length = self._axis_source(wanted[index:])
                stop = index + length
                parts.append(self.sizes(source, axis, axis + length, f"{name}_{index}"))
            index = stop
        return parts[0] if len(parts) == 1 else self.Concat(*parts, axis=0)

    def sizes(self, value: ir.Value, start: int, stop: int, name: str) -> ir.Value:
        """Read the sizes of axes in a row, int64 [stop - start], as the opset of the model says it.

        Args:
            value: whose axes.
            start: the first axis, counted from the front.
            stop: the axis behind the last one.
            name: the role that they play, where the model's opset needs a constant.
        """
        if opset(self.model) >= READS_A_PART:
            return self.Shape(value, start=start, end=stop)
        return self.Gather(self.Shape(value), self.ints(range(start, stop), f"{name}_axes"), axis=0)

    def _axis_source(self, wanted: Sequence[int | str]) -> tuple[ir.Value, int, int]:
        best: tuple[ir.Value, int, int] | None = None
        for value in self.model.graph.inputs:
            shape = known_dims(value) or ()
            for axis, dim in enumerate(shape):
                length = 0
                while (
                    length < len(wanted)
                    and axis + length < len(shape)
                    and isinstance(wanted[length], str)
                    and shape[axis + length] == wanted[length]
                ):
                    length += 1
                if dim == wanted[0] and (best is None or length > best[2]):
                    best = (value, axis, length)
        if best is None:
            raise Refusal(f"no graph input has the axis {wanted[0]!r}")
        return best


class Rewrite(ABC):
    """What every pass declares.

    Attributes:
        name: its name in pipelines, ledgers and messages.
        numerics: its contract.
        min_opset: the ai.onnx version that its new nodes need.
        enables: names of passes that profit from its result, for the catalogue.
        forms: what it can make of a region, the usual winner first, where that is a choice. A rule builds `op.form`; a
            pass over the whole graph has one form besides `AS_IS`.
        stage: canonicalize, fuse, prune, quantize or lower/<target>; set at registration from the folder.
        behind_lowering: a pass of the quantize stage whose kernel makes steps of rounding errors, so that nothing that
            is proved to rounding errors may come after it.
    """

    name: ClassVar[str]
    numerics: ClassVar[Numerics] = Exact()
    min_opset: ClassVar[int] = 1
    enables: ClassVar[tuple[str, ...]] = ()
    forms: ClassVar[tuple[str, ...]] = ()
    stage: ClassVar[str] = ""
    behind_lowering: ClassVar[bool] = False


class Rule(Rewrite):
    """Replace regions that match a pattern.

    Subclasses name pattern variables as parameters of `patterns`, `guard` and `rewrite`; each parameter receives the
    variable, or the value bound to it. `match` and `op` are always available.
    """

    keeps_shared: ClassVar[bool] = False  # True when recomputing a shared inner value costs nothing
    leaves_shared: ClassVar[bool] = False  # True when a match with a shared inner value has no need of the rewrite

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
