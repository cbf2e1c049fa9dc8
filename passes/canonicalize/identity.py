"""Remove nodes that give back their input.

Before::

    x ─ Identity ─ Dropout ─ Cast(float → float) ─ y

After::

    x ─ y

Meets: every exporter; inference Dropout, Cast to the same type, Expand, Slice, Reshape or Concat that change nothing.
Numerics: exact.
Source: ONNX operators Identity, Dropout, Cast, Expand, Slice, Concat, Transpose.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import attribute, integers, known_dims
from onnxopt.graph import constant as array_of
from onnxopt.patterns import Ops, Pat, constant
from onnxopt.rewrite import Builder, Exact, Match, Rule, register

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
        elif node.op_type == "Transpose":
            perm = attribute(node, "perm")
            match.needs(perm is not None and list(perm) == sorted(perm), "the transpose moves axes")
        else:
            before, after = known_dims(x), known_dims(y)
            match.needs(before is not None and before == after, f"{node.op_type} may change the shape")

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        """Hand on the input."""
        del op
        return x


def _takes_all(node: ir.Node) -> bool:
    """From the first element to an end that no tensor reaches, in steps of one."""
    starts, ends = integers(node.inputs[1]), integers(node.inputs[2])
    steps = integers(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else (1,)
    if not starts or not ends or not steps:
        return False
    return not any(starts) and min(ends) >= ENDLESS and set(steps) == {1}
