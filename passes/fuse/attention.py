"""Fuse scaled dot-product attention into one Attention node.

Before::

    q ─ Mul(s) ─┐
    k ─ Transpose ─ Mul(s) ─ MatMul ─ Add(mask) ─ Softmax ─ Where(IsNaN, 0) ─┐
    v ───────────────────────────────────────────────────────────────────────┴─ MatMul ─ y

After::

    q, k, v, mask ─ Attention(scale) ─ y

Meets: TorchScript exports of SDPA and eager attention, decomposed dynamo exports (opset 18), with the scale on q, on k,
    on both or
    on the product, with or without a mask, with or without the exporter's guard for fully masked rows.
Numerics: reassociated. A row that may attend to nothing has no defined answer and is not compared.
Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; ONNX operator Attention-23.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import attribute, dims, number, rank
from onnxopt.patterns import FLOATS, Ops, Pat, either, scalar
from onnxopt.rewrite import Builder, Match, Reassociated, Rule, register

KEY_FROM_HEADS = (0, 1, 3, 2)  # [batch, heads, keys, size] -> [batch, heads, size, keys]
KEY_FROM_TOKENS = (0, 2, 3, 1)  # [batch, keys, heads, size] -> the same


@register
class FuseAttention(Rule):
    """softmax(s · q kᵀ + mask) v  →  Attention(q, k, v, mask)."""

    name = "fuse-attention"
    min_opset = 23
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("fuse-padding-mask", "fuse-attention-heads")

    def patterns(self, op: Ops, q: Pat, k: Pat, v: Pat, mask: Pat) -> Iterator[Pat]:
        """Every place of the scale, with and without mask and guard."""
        turned = op.Transpose(k, perm=_turns_keys, _name="turn")
        query = either(op.Mul(q, scalar(name="scale_q")), op.Div(q, scalar(name="divide_q")), q)
        key = either(turned, op.Mul(turned, scalar(name="scale_k")), op.Div(turned, scalar(name="divide_k")))
        key = either(key, op.Transpose(op.Mul(k, scalar(name="scale_k")), perm=_turns_keys, _name="turn"))
        product = op.MatMul(query, key)
        scores = either(product, op.Mul(product, scalar(name="scale")), op.Div(product, scalar(name="divide")))
        for masked in (op.Add(scores, mask), scores):
            weights = op.Softmax(masked, axis=_last)
            guarded = op.Where(op.IsNaN(weights), scalar(0.0), weights)
            yield op.MatMul(either(guarded, weights), v)

    def guard(self, match: Match, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None) -> None:
        """Four-dimensional heads; the mask must have the dimensions of the scores that the operator wants."""
        match.require(all(value.dtype in FLOATS for value in (q, k, v)), "q, k or v is not a float tensor", q)
        match.require(
            all(rank(value) == 4 for value in (q, k, v)), "q, k and v are not [batch, heads, sequence, size]", q
        )
        heads, size = (dims(q) or ())[1], (dims(q) or ())[3]
        match.require(
            isinstance(heads, int) and isinstance(size, int), "the number or the size of heads is not known", q
        )
        match.require(
            (dims(k) or ())[_heads_axis(match)] == heads, "queries and keys have different numbers of heads", k
        )
        match.require((dims(v) or ())[1] == heads, "queries and values have different numbers of heads", v)
        if mask is not None:
            shape = dims(mask) or ()
            match.require(len(shape) == 4, f"the mask has rank {len(shape)}, needs 4", mask)
            match.require(shape[3] != 1 or (dims(v) or ())[2] == 1, "the mask has one entry for all keys", mask)
        scale = 1.0
        for name, sign in (
            ("scale_q", 1),
            ("scale_k", 1),
            ("scale", 1),
            ("divide_q", -1),
            ("divide_k", -1),
            ("divide", -1),
        ):
            found = number(match.values.get(name))
            match.require(
                found is None or found > 0, f"the scores are scaled by {found}; Attention takes a positive scale"
            )
            scale *= found**sign if found is not None else 1.0
        match.facts["scale"] = scale

    def rewrite(
        self, op: Builder, match: Match, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value | None
    ) -> ir.Value:
        """One node; a mask with one row for all queries is written out, since runtimes want every row."""
        if tuple(attribute(match.named["turn"], "perm")) == KEY_FROM_TOKENS:
            k = op.Transpose(k, perm=(0, 2, 1, 3))
        if mask is not None and (dims(mask) or ())[2] == 1 and (dims(q) or ())[2] != 1:
            queries = op.Shape(q, start=2, end=3)
            mask = op.Expand(mask, op.Concat(op.ints([1, 1], "ones"), queries, op.ints([1], "one"), axis=0))
        return op.Attention(q, k, v, mask, scale=match.facts["scale"])


def _heads_axis(match: Match) -> int:
    """Where the keys have their heads before they are turned."""
    return 2 if tuple(attribute(match.named["turn"], "perm")) == KEY_FROM_TOKENS else 1


def _turns_keys(perm: tuple[int, ...]) -> bool:
    """A permutation that puts the size of a head before the keys."""
    return tuple(perm or ()) in (KEY_FROM_HEADS, KEY_FROM_TOKENS)


def _last(axis: int) -> bool:
    """The last of four axes."""
    return axis in (-1, 3)
