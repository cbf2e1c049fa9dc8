"""Fuse the spelled-out softmax into one operator.

Before::

    x ─┬─ ReduceMax ─┐        ┌─ ReduceSum ─┐
       └─────────────┴─ Sub ─ Exp ──────────┴─ Div ─ y

After::

    x ─ Softmax ─ y

Meets: JAX, which has no softmax of its own: the maximum held above −∞, the maximum and the sum without their axis,
    which a Reshape gives back; Div, or Mul by the Reciprocal.
Numerics: reassociated.
Source: ONNX operator Softmax-13, of one axis since then; its kernel takes the maximum off too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import number, rank
from onnxopt.graph.dimensions import has_axis_of_one, one_axis_of
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Const, Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import FLOATS, either, kept, reduced, scalar
from onnxopt.spec import Reassociated


@dataclass(frozen=True)
class Along:
    """The axis whose weights sum to one; the last is -1."""

    axis: int


@register
class FuseSoftmax(Rule):
    """exp(x − max x) / Σ exp(x − max x)  →  Softmax(x)."""

    name = "fuse-softmax"
    min_opset = 13
    numerics = Reassociated(rtol=1e-5, atol=1e-7)
    enables = ("fuse-attention",)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """A quotient, or a product with the inverse."""
        lowest = Const(lambda value: number(value) == -np.inf, "−∞")
        peak = reduced("ReduceMax", x, "peak")
        top = kept(either(peak, op.Max(peak, lowest)), "top")
        powers = op.Exp(op.Sub(x, top, _name="shifted"))
        total = kept(reduced("ReduceSum", powers, "sum"), "total")
        yield op.Div(powers, total)
        yield op.Mul(powers, either(op.Reciprocal(total), op.Div(scalar(1.0), total)))

    def guard(self, match: Match, x: ir.Value) -> None:
        """Both are taken over the same axis, which they keep as 1."""
        match.require(x.dtype in FLOATS, f"x is {x.dtype}; Softmax takes a float tensor", x)
        match.require(rank(match.root.outputs[0]) == rank(x), "a constant gives the result more axes", x)
        axes = rank(x) or 0
        peak, total = match.named["peak"], match.named["sum"]
        axis = one_axis_of(total, axes)
        match.require(axis is not None, "the sum is not over one known axis", total)
        match.require(one_axis_of(peak, axes) == axis, "the maximum is taken over other axes than the sum", peak)
        shifted = match.named["shifted"].inputs[1]
        behind = match.named.get("total", total)
        match.require(
            axis is not None
            and has_axis_of_one(shifted, x, axis, [peak], moved="top" in match.named)
            and has_axis_of_one(behind.outputs[0], x, axis, [total], moved="total" in match.named),
            "the maximum and the sum are not known to keep their axis",
            x,
        )
        match.note(Along(-1 if axis == axes - 1 else axis or 0))

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """One operator over the same axis."""
        return op.Softmax(x, axis=match.noted(Along).axis)
