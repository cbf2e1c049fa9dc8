"""Give a linear layer a matrix for a weight: leave out the axes of size 1 in front of it.

Before::

    x [batch, tokens, in] ─ MatMul(W [1, in, out]) ─ y
    x [tokens, in] ─ MatMul(W [1, in, out]) ─ y

After::

    x [batch, tokens, in] ─ MatMul(W [in, out]) ─ y
    x [tokens, in] ─ MatMul(W [in, out]) ─ Unsqueeze(0) ─ y

Meets: exports of einsum and of 1×1 convolutions spelled as products, TensorFlow's dense layers, `W.unsqueeze(0)` of
    batched layers with one member.
Numerics: reassociated. The same products are summed; with one matrix the runtime multiplies all rows at once.
Source: ONNX operator MatMul-13, which broadcasts the axes in front of a matrix as numpy.matmul does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import dims, is_op, rank
from onnxopt.graph.linears import name_after
from onnxopt.passes.words.contrib import unsqueeze
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant
from onnxopt.spec import Reassociated


@dataclass(frozen=True)
class Lost:
    """How many axes the result has from the weight alone."""

    axes: int


@register
class FlattenWeight(Rule):
    """X @ W [1, in, out]  →  X @ W [in, out]."""

    name = "flatten-weight"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("fuse-linear", "lower-linear", "quantize-static", "quantize-dynamic")

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """A product with a constant on its right."""
        yield op.MatMul(x, constant("weight"))

    def guard(self, match: Match, x: ir.Value, weight: ir.Value) -> None:
        """The weight is one matrix behind axes of 1, and is read by products alone, since others need all its axes."""
        shape = dims(weight) or ()
        match.needs(len(shape) > 2, "the weight is a matrix already")
        match.require(set(shape[:-2]) == {1}, f"the weight has shape {list(shape)}: several matrices", weight)
        match.require(rank(x) is not None, "the rank of x is not known, so neither is that of the result", x)
        match.require((rank(x) or 0) > 1, "x is a vector, whose product has an axis less", x)
        match.require(
            all(is_op(use.node, "MatMul") and use.idx == 1 for use in weight.uses()),
            "the weight is read by other operators too",
            weight,
        )
        match.note(Lost(max(0, len(shape) - (rank(x) or 0))))

    def rewrite(self, op: Builder, match: Match, x: ir.Value, weight: ir.Value) -> ir.Value:
        """The same numbers as a matrix; what the weight alone added to the rank of the result is put back."""
        array = match.array("weight")
        matrix = op.constant(array.reshape(array.shape[-2:]), "weight")
        name_after(matrix, [weight])
        product = op.MatMul(x, matrix)
        lost = match.noted(Lost).axes
        return unsqueeze(op, product, range(lost), "lost") if lost else product
