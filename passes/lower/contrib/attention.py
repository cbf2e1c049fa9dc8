"""Lower packed self-attention to ONNX Runtime's Attention kernel, which takes the projection with it.

Before::

    x ─ MatMul(W) ─ Add(b) ─ Split ─ Attention(mask [batch, 1, queries, keys]) ─ y

After::

    x ─ com.microsoft.Attention(W, b, mask [batch, keys]) ─ y
    x ─ MatMul(W) ─ Add(b) ─ Split ─ com.microsoft.MultiHeadAttention(mask [batch, keys]) ─ y      (when measured
    faster)

Meets: encoders after fuse-padding-mask and pack-qkv.
Numerics: reassociated.
Source: ONNX Runtime contrib operator Attention; the mask stays raw and two-dimensional, so that left padding and holes
    are right (a one-dimensional mask index means right padding only, onnxruntime issue 18945).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import attribute, constant, dims, integers, number
from onnxopt.passes.fuse.padding_mask import padding_bias
from onnxopt.passes.words.contrib import FAR_BELOW
from onnxopt.passes.words.masks import LOWEST, padding_mask, raw_mask
from onnxopt.probe.sidegraph import is_contract
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant as any_constant
from onnxopt.rewrite.vocabulary import either
from onnxopt.spec import Reassociated


@dataclass(frozen=True)
class Heads:
    """How many heads there are, the widths of queries, keys and values, and what masked scores get."""

    count: int
    widths: tuple[int, ...]
    fill: float | None


@register
class LowerAttention(Rule):
    """Attention(Split(xW + b), mask)  →  com.microsoft.Attention(x, W, b, mask)."""

    name = "lower-attention"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    forms = ("Attention", "MultiHeadAttention")

    def patterns(self, op: Ops, x: Pat, keys: Pat) -> Iterator[Pat]:
        """With and without bias, with and without a padding mask."""
        product = op.MatMul(x, any_constant("weight"))
        packed = either(op.Add(product, any_constant("bias")), product)
        q, k, v = (op.Split(packed, any_constant("widths"), axis=_last_of_three, _output=index) for index in range(3))
        yield op.Attention(q, k, v, padding_mask(op, keys))
        yield op.Attention(q, k, v, padding_bias(op, keys))
        yield op.Attention(q, k, v)

    def class_of(self, match: Match) -> str:
        """Heads and their size, and whether there is a mask."""
        heads = match.noted(Heads)
        mask = "padding mask" if match.values.get("keys") is not None else "no mask"
        return f"{heads.count} heads of {heads.widths[0] // heads.count}, {mask}"

    def guard(self, match: Match, x: ir.Value, keys: ir.Value | None, widths: ir.Value) -> None:
        """float32, as many key heads as query heads, nothing that the kernel does not know."""
        node = match.root
        match.require(x.dtype == ir.DataType.FLOAT, f"x is {x.dtype}; the CPU kernel takes float32", x)
        heads = attribute(node, "q_num_heads")
        match.require(heads, "the attention works on heads, not tokens")
        match.require(heads == attribute(node, "kv_num_heads"), "grouped queries")
        match.require(not attribute(node, "is_causal"), "causal")
        match.require(not attribute(node, "softcap"), "soft-capped scores")
        sizes = integers(widths) or ()
        match.require(len(sizes) == 3 and sizes[0] == sizes[1], "queries and keys have different widths")
        match.require(keys is None or len(dims(keys) or ()) == 2, "the mask is not [batch, keys]", keys)
        shape = dims(match.values.get("bias")) or ()
        one = all(size == 1 for size in shape[:-1]) and (not shape or shape[-1] in (1, sum(sizes)))
        match.require(one, f"the bias has the shape {list(shape)}, which is not one for all tokens")
        match.note(Heads(heads, sizes, filter_value(match, keys)))

    def rewrite(self, op: Builder, match: Match, x: ir.Value, keys: ir.Value | None, weight: ir.Value) -> ir.Value:
        """The kernel wants a bias, and the mask as int32."""
        heads = match.noted(Heads)
        sizes = heads.widths
        bias = constant(match.values.get("bias"))
        bias = np.zeros(1, np.float32) if bias is None else bias.reshape(-1)
        filled = op.constant(np.ascontiguousarray(np.broadcast_to(bias, sum(sizes))), "bias")
        scale = attribute(match.root, "scale")
        default = (sizes[0] // heads.count) ** -0.5
        mask = raw_mask(op, keys) if keys is not None else None
        shared = {
            "num_heads": heads.count,
            "scale": None if scale is None or abs(scale - default) < 1e-6 * default else scale,
            "mask_filter_value": heads.fill,
        }
        if op.form == "MultiHeadAttention":
            packed = op.Add(op.MatMul(x, weight), filled)
            q, k, v = op.node("Split", [packed, op.ints(sizes, "widths")], {"axis": -1}, outputs=3)
            return op.contrib("MultiHeadAttention", q, k, v, None, mask, **shared)
        own = None if len(set(sizes)) == 1 else list(sizes)
        return op.contrib("Attention", x, weight, filled, mask, qkv_hidden_sizes=own, **shared)


def filter_value(match: Match, keys: ir.Value | None) -> float | None:
    """Return what the kernel is to add to the scores of masked keys, None without a mask.

    Added to all scores of a row it gives equal weights, or, a small one, those of the scores; the operator gives zeros.
    That matters where a row may see nothing.

    Raises:
        Refusal: such a row would get another answer.
    """
    fill = number(match.values.get("fill"))
    if keys is None or fill is not None:
        return LOWEST if fill is not None and fill <= FAR_BELOW else fill
    match.require(is_contract(keys), "a row that sees nothing gets zeros, and equal weights from the kernel", keys)
    return LOWEST


def _last_of_three(axis: int) -> bool:
    """The last of three axes."""
    return axis in (-1, 2)
