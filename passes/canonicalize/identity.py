"""Remove nodes that give back their input.

Before::

    x ─ Identity ─ Dropout ─ Cast(float → float) ─ y

After::

    x ─ y

Meets: every exporter; inference Dropout, Cast to the same type, Expand, Slice, Reshape or Concat that change nothing;
    the factor of 1 in Paddle's swish, the Reshape behind its scale.
Numerics: exact.
Source: ONNX operators Identity, Dropout, Cast, Expand, Slice, Concat, Transpose; IEEE 754-2019 for products with 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import attribute, integers, is_op, known_dims, number, rank
from onnxopt.graph import constant as array_of
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant, scalar
from onnxopt.spec import Exact

ONE_BY_ONE = ("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Neg", "Abs", "Not", "Gelu", "Cast", "Identity")
WITH_A_NUMBER = ("Add", "Sub", "Mul", "Div", "Pow")
ENDLESS = 2**31 - 1  # exporters write the largest int32 or int64 where they mean the end


@register
class RemoveNoOps(Rule):
    """f(x)  →  x, where f changes neither data nor shape nor dtype."""

    name = "remove-no-ops"
    numerics = Exact()
    enables = ("fuse-attention",)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """One line per operator that can do nothing."""
        yield op.Identity(x)
        yield op.Dropout(x, _rest=True)
        yield op.Cast(x)
        yield op.Expand(x, _rest=True)
        yield op.Reshape(x, _rest=True)
        yield op.Transpose(x)
        yield op.Concat(x)
        yield op.Flatten(x)
        yield op.Slice(x, constant("starts"), constant("ends"), _rest=True)
        yield op.Mul(x, scalar(1.0, name="one"))
        yield op.Div(x, scalar(1.0, name="one"))

    def guard(self, match: Match, x: ir.Value) -> None:
        """Allow each operator where it provably does nothing."""
        node, y = match.root, match.root.outputs[0]
        match.require(
            not (y.is_graph_output() and (x.is_graph_input() or x.producer() is None)), "an output cannot be an input"
        )
        match.needs(not (y.is_graph_output() and node.op_type == "Identity"), "the Identity names an output")
        if node.op_type in ("Identity", "Concat"):
            return
        if node.op_type == "Dropout":
            training = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
            match.require(len(node.inputs) < 3 or (training is not None and not training.any()), "dropout may train")
            match.require(len(node.outputs) < 2 or not node.outputs[1].uses(), "the dropout mask is used")
        elif node.op_type == "Cast":
            match.needs(
                x.dtype is not None and x.dtype == ir.DataType(attribute(node, "to")), "the cast changes the type"
            )
        elif node.op_type == "Slice":
            match.needs(_takes_all(node), "the slice leaves something out")
        elif node.op_type in ("Mul", "Div"):
            match.needs(match.number("one") == 1.0, "the factor is only close to 1")
            axes, given = rank(x), rank(match.values["one"])
            match.require(axes is not None and given is not None and given <= axes, "the factor may add an axis", x)
        elif node.op_type == "Transpose":
            perm = attribute(node, "perm")
            match.needs(perm is not None and list(perm) == sorted(perm), "the transpose moves axes")
        else:
            before, after = known_dims(x), known_dims(y)
            match.needs(
                (before is not None and before == after) or _to_its_own_shape(node),
                f"{node.op_type} may change the shape",
            )

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        """Hand on the input."""
        del op
        return x


def _to_its_own_shape(node: ir.Node) -> bool:
    """Tell whether a Reshape or Expand asks for the shape of what its input was computed from, number by number."""
    wanted = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if node.op_type not in ("Reshape", "Expand") or not is_op(wanted, "Shape") or wanted is None or wanted.attributes:
        return False
    x: ir.Value | None = node.inputs[0]
    while x is not None and x is not wanted.inputs[0]:
        x = _before_elementwise(x)
    return x is not None


def _before_elementwise(value: ir.Value) -> ir.Value | None:
    """Return what an elementwise operator with one number, or with nothing, computes a value from; None for others."""
    node = value.producer()
    if node is None or not is_op(node, *ONE_BY_ONE, *WITH_A_NUMBER):
        return None
    if len(node.inputs) == 1:
        return node.inputs[0]
    left, right = node.inputs
    for x, other in ((left, right), (right, left)):
        if number(other) is not None and (rank(other) or 0) <= 1:  # [1] broadcasts to anything that has an axis
            return x if rank(other) == 0 or (rank(x) or 0) >= 1 else None
    return None


def _takes_all(node: ir.Node) -> bool:
    """From the first element to an end that no tensor reaches, in steps of one."""
    starts, ends = integers(node.inputs[1]), integers(node.inputs[2])
    steps = integers(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else (1,)
    if not starts or not ends or not steps:
        return False
    return not any(starts) and min(ends) >= ENDLESS and set(steps) == {1}
