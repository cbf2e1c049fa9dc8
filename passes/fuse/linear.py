"""Give a linear layer with bias one form: Gemm with an untransposed constant weight for matrices.

Before::

    x [rows, in] ─ MatMul(W) ─ Add(b) ─ y            x ─ Gemm(Wᵀ, b, transB=1) ─ y

After::

    x ─ Gemm(W, b) ─ y

Meets: classifier heads and poolers (torch writes Gemm with transB=1 there), graphs that flatten their tokens.
Numerics: reassociated. The runtime may add the bias first.
Source: ONNX operator Gemm-13.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import attribute, dims, rank
from onnxopt.graph.linears import name_after
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import FLOATS, constant, linear
from onnxopt.spec import Reassociated


@register
class FuseLinear(Rule):
    """X @ W + b  →  Gemm(X, W, b), for matrices."""

    name = "fuse-linear"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("lower-linear",)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """The product and the bias behind it."""
        del op
        yield linear(x, "weight", "bias")

    def guard(self, match: Match, x: ir.Value, weight: ir.Value, bias: ir.Value) -> None:
        """Gemm takes matrices; the bias must be a vector of the output's width."""
        match.require(x.dtype in FLOATS, f"x is {x.dtype}; needs a float tensor", x)
        match.needs(rank(x) == 2, f"x has rank {rank(x)}; Gemm takes a matrix")
        shape = dims(weight)
        match.require(shape is not None and len(shape) == 2, "the weight is not a matrix", weight)
        match.require(dims(bias) == (shape or (0, 0))[1:], f"the bias has shape {dims(bias)}", bias)

    def rewrite(self, op: Builder, x: ir.Value, weight: ir.Value, bias: ir.Value) -> ir.Value:
        """One node."""
        return op.Gemm(x, weight, bias)


@register
class StoreWeightUntransposed(Rule):
    """Gemm(X, Wᵀ, b, transB=1)  →  Gemm(X, W, b)."""

    name = "store-weight-untransposed"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)

    def patterns(self, op: Ops, x: Pat, maybe_bias: Pat) -> Iterator[Pat]:
        """A Gemm whose constant weight is stored transposed."""
        yield op.Gemm(x, constant("weight"), maybe_bias, transB=1, transA=0)

    def guard(self, match: Match, weight: ir.Value) -> None:
        """A weight that others read as it is would be stored twice."""
        match.require(len(weight.uses()) == 1, "the weight is shared", weight)

    def rewrite(
        self, op: Builder, match: Match, x: ir.Value, weight: ir.Value, maybe_bias: ir.Value | None
    ) -> ir.Value:
        """Turn the constant."""
        node = match.root
        turned = op.constant(match.array("weight").T, "weight")
        name_after(turned, [weight])
        return op.Gemm(x, turned, maybe_bias, alpha=attribute(node, "alpha"), beta=attribute(node, "beta"))
