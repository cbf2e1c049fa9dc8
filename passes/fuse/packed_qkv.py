"""Compute queries, keys and values with one matrix product.

Before::

    x ─┬─ MatMul(Wq) ─ Add(bq) ─┐
       ├─ MatMul(Wk) ─ Add(bk) ─┼─ Attention ─ y
       └─ MatMul(Wv) ─ Add(bv) ─┘

After::

    x ─ MatMul([Wq Wk Wv]) ─ Add([bq bk bv]) ─ Split ─ Attention ─ y

Meets: every encoder and decoder that keeps the three projections apart.
Numerics: reassociated. The same sums in a wider product.
Source: [x Wq, x Wk, x Wv] = x [Wq Wk Wv].
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Dim, constant, dims, rank
from onnxopt.linears import name_after
from onnxopt.patterns import Ops, Pat, either
from onnxopt.patterns import constant as any_constant
from onnxopt.rewrite import Builder, Match, Reassociated, Rule, register


@register
class PackQKV(Rule):
    """Attention(xWq + bq, xWk + bk, xWv + bv)  →  Attention(Split(xW + b))."""

    name = "pack-qkv"
    min_opset = 23
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("lower-attention",)

    def patterns(self, op: Ops, x: Pat, maybe_mask: Pat) -> Iterator[Pat]:
        """Three projections of one input, each with or without a bias."""
        yield op.Attention(*projections(op, x), maybe_mask)

    def guard(self, match: Match, x: ir.Value) -> None:
        """Matrices and vectors; the attention works on tokens."""
        match.require(rank(x) == 3, f"x has rank {rank(x)}, needs 3", x)
        match.require("q_num_heads" in match.root.attributes, "the attention works on heads, not tokens")
        match.facts["widths"] = require_projections(match)

    def rewrite(self, op: Builder, match: Match, x: ir.Value, maybe_mask: ir.Value | None) -> ir.Value:
        """One product, split again."""
        widths, packed = match.facts["widths"], one_product(op, match, x)
        q, k, v = op.node("Split", [packed, op.ints(widths, "widths")], {"axis": -1}, outputs=3)
        attributes = {name: attr.value for name, attr in match.root.attributes.items()}
        return op.Attention(q, k, v, maybe_mask, **attributes)


def projections(op: Ops, x: Pat) -> list[Pat]:
    """Queries, keys and values as products of one input with constants, each with or without a bias."""
    products = {name: op.MatMul(x, any_constant(f"w{name}")) for name in "qkv"}
    return [either(op.Add(product, any_constant(f"b{name}")), product) for name, product in products.items()]


def require_projections(match: Match) -> list[Dim]:
    """Require matrices of their own and vectors; return the widths of queries, keys and values."""
    widths = []
    for name in "qkv":
        weight, bias = match.values[f"w{name}"], match.values.get(f"b{name}")
        shape = dims(weight) or ()
        match.require(len(shape) == 2, f"the weight of {name} is not a matrix", weight)
        match.require(bias is None or dims(bias) == shape[1:], f"the bias of {name} is not a vector", bias)
        match.require(weight is not None and len(weight.uses()) == 1, f"the weight of {name} is shared", weight)
        widths.append(shape[1])
    return widths


def one_product(op: Builder, match: Match, x: ir.Value | None) -> ir.Value:
    """Concatenate the constants; a missing bias counts as zero."""
    weights = [match.array(f"w{name}") for name in "qkv"]
    weight = op.constant(np.concatenate(weights, axis=1), "weight")
    name_after(weight, [value for name in "qkv" if (value := match.values[f"w{name}"]) is not None])
    packed = op.MatMul(x, weight)
    biases = [constant(match.values.get(f"b{name}")) for name in "qkv"]
    if all(bias is None for bias in biases):
        return packed
    kind = weights[0].dtype
    filled = [np.zeros(w.shape[1], kind) if b is None else b for b, w in zip(biases, weights, strict=True)]
    return op.Add(packed, op.constant(np.concatenate(filled), "bias"))
