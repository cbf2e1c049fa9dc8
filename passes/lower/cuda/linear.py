"""Multiply tokens in their own shape, with the bias apart.

Before::

    x [batch, sequence, d] ─ Reshape [-1, d] ─ Gemm(W, b) ─ Reshape [batch, sequence, n] ─ y

After::

    x ─ MatMul(W) ─ Add(b) ─ y

Meets: linear layers that an exporter spelled as a product of matrices (Conv1D of GPT-2), and fuse-linear's result.
Numerics: reassociated.
Source: ONNX Runtime's CUDA provider computes the bias of a Gemm by a copy of its own, while BiasGelu and
    SkipLayerNormalization add one for nothing; shapes of tokens are computed on the host.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import attribute, dims, rank
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat, Var
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant
from onnxopt.spec import Reassociated


@register
class SpreadLinear(Rule):
    """Reshape(Gemm(Reshape(x), W, b))  →  x @ W + b."""

    name = "spread-linear"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("lower-bias-gelu", "lower-skip-norm")

    def patterns(self, op: Ops, x: Pat, maybe_bias: Pat) -> Iterator[Pat]:
        """Between two Reshapes."""
        flat = op.Reshape(x, Var("flat_shape"), _shared=True)
        yield op.Reshape(op.Gemm(flat, constant("weight"), maybe_bias, _name="product"), Var("shape"))

    def guard(self, match: Match, x: ir.Value, weight: ir.Value, maybe_bias: ir.Value | None) -> None:
        """The tokens come back in the shape that they had; nothing is scaled or turned."""
        product, before, after = match.named["product"], dims(x), dims(match.root.outputs[0])
        plain = all(attribute(product, name) in (1.0, None) for name in ("alpha", "beta"))
        match.require(plain and not attribute(product, "transA"), "the product is scaled or turned", product)
        match.require(not attribute(product, "transB"), "the weight is turned", product)
        match.require(before is not None and after is not None and len(before) > 2, "the shapes are unknown", x)
        match.require((before or ())[:-1] == (after or ())[:-1], f"{before} becomes {after}", x)
        width = (dims(weight) or (None, None))[1]
        match.require((after or (None,))[-1] == width, "the last axis is not the layer's", weight)
        match.require(maybe_bias is None or rank(maybe_bias) == 1, "the bias is not one number per channel", maybe_bias)

    def rewrite(self, op: Builder, x: ir.Value, weight: ir.Value, maybe_bias: ir.Value | None) -> ir.Value:
        """One product for all rows of the batch."""
        product = op.MatMul(x, weight)
        return product if maybe_bias is None else op.Add(product, maybe_bias)
