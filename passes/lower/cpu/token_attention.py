"""Lower self- and cross-attention on tokens to MultiHeadAttention, whatever made its queries, keys and values.

Before::

    q, k, v [batch, sequence, width] ─ Attention(mask [batch, 1, queries, keys]) ─ y

After::

    q, k, v ─ com.microsoft.MultiHeadAttention(mask [batch, keys]) ─ y

Meets: attentions whose projection is not one float product: quantized ones, and those that lower-attention leaves.
Numerics: reassociated.
Source: ONNX Runtime contrib operator MultiHeadAttention; without a mask its CPU kernel never builds the matrix of
    scores, and with one it reads [batch, keys] instead of [batch, heads, queries, keys].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import attribute, dims, rank
from onnxopt.passes.fuse.padding_mask import padding_bias
from onnxopt.passes.lower.contrib.attention import filter_value
from onnxopt.passes.words.masks import padding_mask, raw_mask
from onnxopt.rewrite import AS_IS, Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated


@dataclass(frozen=True)
class Heads:
    """How many heads there are, the width of all together, and what masked scores get."""

    count: int
    width: int
    fill: float | None


@register
class LowerTokenAttention(Rule):
    """Attention(q, k, v, mask)  →  com.microsoft.MultiHeadAttention(q, k, v, mask)."""

    name = "lower-token-attention"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    forms = ("MultiHeadAttention", AS_IS)

    def patterns(self, op: Ops, q: Pat, k: Pat, v: Pat, keys: Pat) -> Iterator[Pat]:
        """With and without a padding mask."""
        yield op.Attention(q, k, v, padding_mask(op, keys))
        yield op.Attention(q, k, v, padding_bias(op, keys))
        yield op.Attention(q, k, v)

    def class_of(self, match: Match) -> str:
        """Heads and their size, and whether there is a mask."""
        heads = match.noted(Heads)
        mask = "padding mask" if match.values.get("keys") is not None else "no mask"
        return f"{heads.count} heads of {heads.width // heads.count}, {mask}"

    def guard(self, match: Match, q: ir.Value, k: ir.Value, v: ir.Value, keys: ir.Value | None) -> None:
        """float32 tokens, as many key heads as query heads, nothing that the kernel does not know."""
        node = match.root
        for value in (q, k, v):
            match.require(value.dtype == ir.DataType.FLOAT, f"{value.dtype}; the CPU kernel takes float32", value)
            match.require(rank(value) == 3, "the attention works on heads, not tokens", value)
        heads = attribute(node, "q_num_heads")
        match.require(heads, "the attention works on heads, not tokens")
        match.require(heads == attribute(node, "kv_num_heads"), "grouped queries")
        match.require(not attribute(node, "is_causal"), "causal")
        match.require(not attribute(node, "softcap"), "soft-capped scores")
        width = (dims(q) or (None,))[-1]
        match.require(isinstance(width, int) and width == (dims(k) or (None,))[-1], "widths differ or are unknown", k)
        match.require(keys is None or len(dims(keys) or ()) == 2, "the mask is not [batch, keys]", keys)
        match.note(Heads(heads, int(width or 0), filter_value(match, keys)))

    def rewrite(
        self, op: Builder, match: Match, q: ir.Value, k: ir.Value, v: ir.Value, keys: ir.Value | None
    ) -> ir.Value:
        """The mask as int32."""
        heads = match.noted(Heads)
        scale, default = attribute(match.root, "scale"), (heads.width // heads.count) ** -0.5
        return op.contrib(
            "MultiHeadAttention",
            *(q, k, v, None, raw_mask(op, keys) if keys is not None else None),
            num_heads=heads.count,
            scale=None if scale is None or abs(scale - default) < 1e-6 * default else scale,
            mask_filter_value=heads.fill,
        )
