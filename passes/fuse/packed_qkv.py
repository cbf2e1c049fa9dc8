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
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import rank
from onnxopt.passes.words.projections import one_product, projections, require_projections
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated


@dataclass(frozen=True)
class Widths:
    """The columns of queries, keys and values."""

    each: tuple[int, ...]


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
        match.note(Widths(tuple(int(width or 0) for width in require_projections(match))))

    def rewrite(self, op: Builder, match: Match, x: ir.Value, maybe_mask: ir.Value | None) -> ir.Value:
        """One product, split again."""
        widths, packed = match.noted(Widths).each, one_product(op, match, x)
        q, k, v = op.node("Split", [packed, op.ints(widths, "widths")], {"axis": -1}, outputs=3)
        attributes = {name: attr.value for name, attr in match.root.attributes.items()}
        return op.Attention(q, k, v, maybe_mask, **attributes)
