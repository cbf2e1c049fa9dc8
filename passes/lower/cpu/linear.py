"""Run a linear layer with bias over all tokens as one Gemm.

Before::

    x [batch, sequence, in] ─ MatMul(W) ─ Add(b) ─ y

After::

    x ─ Reshape [tokens, in] ─ Gemm(W, b) ─ Reshape [batch, sequence, out] ─ y

Meets: every linear layer of a transformer; flatten-tokens then removes the Reshapes between layers.
Numerics: reassociated. Gemm starts from the bias.
Source: the CPU session fuses MatMul and Add into Gemm for matrices only (onnxruntime MatMulAddFusion).
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import dims, known_dims
from onnxopt.patterns import Ops, Pat, linear
from onnxopt.rewrite import AS_IS, Builder, Match, Reassociated, Rule, register


@register
class LowerLinear(Rule):
    """X @ W + b on tokens  →  Gemm on rows."""

    name = "lower-linear"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("flatten-tokens",)
    forms = ("Gemm on rows", AS_IS)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """The product and the bias behind it."""
        del op
        yield linear(x, "weight", "bias")

    def guard(self, match: Match, x: ir.Value, weight: ir.Value, bias: ir.Value) -> None:
        """float32, more than two axes, all of them known."""
        match.require(x.dtype == ir.DataType.FLOAT, f"x is {x.dtype}; the CPU kernel takes float32", x)
        shape, out = dims(weight) or (), known_dims(match.root.outputs[0])
        match.require(len(shape) == 2, "the weight is not a matrix", weight)
        match.require(dims(bias) == shape[1:], f"the bias has shape {dims(bias)}", bias)
        match.needs(len(dims(x) or ()) > 2, "x is a matrix already")
        match.require(out is not None, "the shape of the result is not known", match.root)
        match.facts["out"] = out

    def rewrite(self, op: Builder, match: Match, x: ir.Value, weight: ir.Value, bias: ir.Value) -> ir.Value:
        """Rows in, rows out."""
        out = match.facts["out"]
        rows = op.Reshape(x, op.ints([-1, int((dims(weight) or ())[0] or 0)], "rows"))
        return op.reshape(op.Gemm(rows, weight, bias), out, "shape")
