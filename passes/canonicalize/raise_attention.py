"""Read ONNX Runtime's attention kernels as projections and one Attention.

Before::

    x, W, b, mask ─ com.microsoft.Attention(num_heads) ─ y

After::

    x ─ MatMul(W) ─ Add(b) ─ Split ─┐
    mask ─ Cast(bool) ─ Unsqueeze ──┴─ Attention(q_num_heads) ─ y

Meets: encoders that ONNX Runtime's session, its transformers optimizer or onnxopt's lowering for the CPU wrote: packed
    projections (Attention), three inputs with one bias (MultiHeadAttention), grouped heads (GroupQueryAttention); masks
    of [batch] lengths, [batch, keys], [batch, queries, keys], and an additive bias.
Numerics: reassociated. A masked key gets a weight of zero; a row that may attend to nothing has no defined answer.
Source: ONNX Runtime's operators Attention, MultiHeadAttention, GroupQueryAttention; ONNX operator Attention-23, its
    parts below that opset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import CONTRIB, constant, dims, opset, rank
from onnxopt.passes.words.contrib import LOWEST, MASK_FILTER, WIDE, Scores, allowed_keys, attend, given, split_last
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.sizes.derive import same_dimension, same_shape
from onnxopt.spec import Reassociated

NUMERICS = Reassociated(rtol=2e-5, atol=2e-6)
ENABLES = ("fuse-attention", "fuse-padding-mask", "lower-attention")


@dataclass(frozen=True)
class Heads:
    """The widths of queries, keys and values, and what the kernel does with its scores."""

    widths: tuple[int, ...]
    scores: Scores


@register
class RaiseAttention(Rule):
    """com.microsoft Attention(x, W, b, mask)  →  Attention(Split(xW + b), mask)."""

    name = "raise-attention"
    numerics = NUMERICS
    enables = ENABLES

    def patterns(
        self,
        op: Ops,
        x: Pat,
        weight: Pat,
        maybe_bias: Pat,
        maybe_mask: Pat,
        maybe_past: Pat,
        maybe_added: Pat,
        maybe_past_length: Pat,
    ) -> Iterator[Pat]:
        """One kernel with five optional inputs."""
        yield op.Attention(
            x, weight, maybe_bias, maybe_mask, maybe_past, maybe_added, maybe_past_length, _domain=CONTRIB
        )

    def guard(
        self,
        match: Match,
        x: ir.Value,
        weight: ir.Value,
        maybe_mask: ir.Value | None,
        maybe_past: ir.Value | None,
        maybe_past_length: ir.Value | None,
    ) -> None:
        """No cache, no rotation, a mask of a known form."""
        node = match.root
        match.require(maybe_past is None and maybe_past_length is None, "it has a cache")
        match.require(not given(node, "do_rotary", 0), "it rotates queries and keys inside")
        match.require(rank(x) == 3, f"x has rank {rank(x)}, needs 3", x)
        width = (dims(weight) or (None,))[-1]
        match.require(isinstance(width, int), "the width of the projection is not known", weight)
        sizes = tuple(given(node, "qkv_hidden_sizes", ())) or (int(width or 0) // 3,) * 3
        match.require(sizes[0] == sizes[1], "queries and keys have different widths")
        scores = _scores(match, x, (sizes[0], sizes[2]))
        _require_mask(match, maybe_mask, x, x)
        match.note(Heads(sizes, scores))

    def rewrite(
        self,
        op: Builder,
        match: Match,
        x: ir.Value,
        weight: ir.Value,
        maybe_bias: ir.Value | None,
        maybe_mask: ir.Value | None,
        maybe_added: ir.Value | None,
    ) -> ir.Value:
        """One product for queries, keys and values."""
        heads, packed = match.noted(Heads), op.MatMul(x, weight)
        known = constant(maybe_bias)
        if maybe_bias is not None and (known is None or known.any()):
            packed = op.Add(packed, maybe_bias)
        q, k, v = split_last(op, packed, heads.widths, "widths")
        q.type = x.type
        allowed = None if maybe_mask is None else allowed_keys(op, maybe_mask, x)
        return attend(op, q, k, v, heads.scores, allowed=allowed, bias=maybe_added)


@register
class RaiseMultiHeadAttention(Rule):
    """com.microsoft MultiHeadAttention(q, k, v, bias, mask)  →  Attention(q + bq, k + bk, v + bv, mask)."""

    name = "raise-multi-head-attention"
    numerics = NUMERICS
    enables = ENABLES

    def patterns(
        self,
        op: Ops,
        q: Pat,
        maybe_k: Pat,
        maybe_v: Pat,
        maybe_bias: Pat,
        maybe_mask: Pat,
        maybe_added: Pat,
        maybe_past_key: Pat,
        maybe_past_value: Pat,
        maybe_past_length: Pat,
        maybe_beams: Pat,
    ) -> Iterator[Pat]:
        """One kernel with nine optional inputs."""
        yield op.MultiHeadAttention(
            q,
            maybe_k,
            maybe_v,
            maybe_bias,
            maybe_mask,
            maybe_added,
            maybe_past_key,
            maybe_past_value,
            maybe_past_length,
            maybe_beams,
            _domain=CONTRIB,
        )

    def guard(
        self,
        match: Match,
        q: ir.Value,
        maybe_k: ir.Value | None,
        maybe_v: ir.Value | None,
        maybe_mask: ir.Value | None,
        maybe_past_key: ir.Value | None,
        maybe_past_value: ir.Value | None,
        maybe_past_length: ir.Value | None,
        maybe_beams: ir.Value | None,
    ) -> None:
        """Three inputs of tokens, no cache."""
        past = (maybe_past_key, maybe_past_value, maybe_past_length, maybe_beams)
        match.require(all(value is None for value in past), "it has a cache")
        match.require(maybe_k is not None and maybe_v is not None, "queries, keys and values are packed by head", q)
        ranks = {rank(value) for value in (q, maybe_k, maybe_v)}
        match.require(ranks == {3}, f"queries, keys and values have the ranks {ranks}, need 3", q)
        widths = [(dims(value) or (None,))[-1] for value in (q, maybe_k, maybe_v)]
        match.require(all(isinstance(width, int) for width in widths), "the width of the heads is not known", q)
        match.require(widths[0] == widths[1], "queries and keys have different widths", q)
        causal = given(match.root, "unidirectional", 0)
        match.require(not causal or same_dimension(q, maybe_k, 1), "causal, with keys of another sequence", q)
        scores = _scores(match, q, (int(widths[0] or 0), int(widths[2] or 0)))
        _require_mask(match, maybe_mask, q, maybe_k)
        match.note(Heads(tuple(int(width or 0) for width in widths), scores))

    def rewrite(
        self,
        op: Builder,
        match: Match,
        q: ir.Value,
        maybe_k: ir.Value,
        maybe_v: ir.Value,
        maybe_bias: ir.Value | None,
        maybe_mask: ir.Value | None,
        maybe_added: ir.Value | None,
    ) -> ir.Value:
        """The bias is that of all three, one behind the other."""
        heads, k, v, kind = match.noted(Heads), maybe_k, maybe_v, q.type
        if maybe_bias is not None:
            q, k, v = (op.Add(side, part) for side, part in zip((q, k, v), _parts(op, heads, maybe_bias), strict=True))
            q.type = kind
        allowed = None if maybe_mask is None else allowed_keys(op, maybe_mask, maybe_k)
        return attend(op, q, k, v, heads.scores, allowed=allowed, bias=maybe_added)


@register
class RaiseGroupQueryAttention(Rule):
    """com.microsoft GroupQueryAttention(q, k, v, lengths)  →  Attention(q, k, v), causal or up to the lengths."""

    name = "raise-group-query-attention"
    numerics = NUMERICS
    enables = ENABLES

    def patterns(
        self, op: Ops, q: Pat, maybe_k: Pat, maybe_v: Pat, last: Pat, total: Pat, maybe_added: Pat
    ) -> Iterator[Pat]:
        """Without cache, rotation, sink and quantized keys; with keys and values apart or packed behind the queries."""
        yield op.GroupQueryAttention(
            q, maybe_k, maybe_v, None, None, last, total, None, None, None, maybe_added, _domain=CONTRIB
        )

    def guard(self, match: Match, q: ir.Value, maybe_k: ir.Value | None, maybe_v: ir.Value | None) -> None:
        """Plain scores over one sequence."""
        node = match.root
        match.require(not given(node, "do_rotary", 0), "it rotates queries and keys inside")
        match.require(given(node, "local_window_size", -1) == -1, "it looks at a window of keys")
        match.require(given(node, "smooth_softmax", -1) in (-1, 0), "its softmax has a sink")
        match.require(rank(q) == 3, f"queries have rank {rank(q)}, need 3", q)
        heads, groups = given(node, "num_heads", 0), given(node, "kv_num_heads", 0)
        width = (dims(q) or (None,))[-1]
        match.require(isinstance(width, int), "the width of the heads is not known", q)
        whole = int(width or 0)
        size = whole // heads if maybe_k is not None else whole // (heads + 2 * groups)
        if maybe_k is not None:
            same = same_dimension(maybe_k, q, 1) and (dims(maybe_k) or (0,))[-1] == groups * size
            alike = maybe_v is not None and same_shape(maybe_v, maybe_k)
            match.require(same and alike, "keys are not those of the same tokens", maybe_k)
        scores = _scores(match, q, (heads * size, heads * size), groups)
        match.note(Heads((heads * size, groups * size, groups * size), scores))

    def rewrite(
        self,
        op: Builder,
        match: Match,
        q: ir.Value,
        maybe_k: ir.Value | None,
        maybe_v: ir.Value | None,
        last: ir.Value,
        maybe_added: ir.Value | None,
    ) -> ir.Value:
        """A causal row never looks behind itself, so its length says nothing; `last` is the last real key."""
        heads, kind = match.noted(Heads), q.type
        if maybe_k is None or maybe_v is None:
            q, maybe_k, maybe_v = split_last(op, q, heads.widths, "widths")
            q.type = kind
        allowed = None
        if not heads.scores.causal:
            flat = op.Reshape(last, op.ints([-1], "flat"))  # [batch], or [batch, 1] in some exports
            lengths = op.Add(flat, op.constant(np.array(1, np.int32), "next"))
            lengths.shape = ir.Shape([None])
            allowed = allowed_keys(op, lengths, maybe_k)
        return attend(op, q, maybe_k, maybe_v, heads.scores, allowed=allowed, bias=maybe_added)


def _scores(match: Match, x: ir.Value, widths: tuple[int, int], kv_heads: int = 0) -> Scores:
    """Read the attributes that all kernels share; refuse what below opset 23 cannot be spelled."""
    node = match.root
    heads, softcap = int(given(node, "num_heads", 0)), float(given(node, "softcap", 0.0))
    match.require(heads > 0 and all(width % heads == 0 for width in widths), f"{heads} heads do not divide {widths}", x)
    fill = float(given(node, "mask_filter_value", LOWEST if kv_heads else MASK_FILTER))
    match.require(fill <= MASK_FILTER, f"masked scores get {fill}, which keeps them a weight")
    has_operator = opset(match.model) >= 23
    match.require(
        has_operator or (kv_heads in (0, heads) and not softcap),
        f"opset {opset(match.model)} has no Attention for grouped or soft-capped heads",
    )
    match.require(has_operator or x.dtype in WIDE, f"x is {x.dtype}; its parts would round before opset 23", x)
    causal = given(node, "causal", 1) if kv_heads else given(node, "unidirectional", 0)
    sizes = (widths[0] // heads, widths[1] // heads)
    scale = float(given(node, "scale", 0.0)) or sizes[0] ** -0.5
    return Scores(heads, kv_heads or heads, sizes, scale, fill, bool(causal), softcap)


def _require_mask(match: Match, mask: ir.Value | None, q: ir.Value, keys: ir.Value | None) -> None:
    """Allow one length per row, one switch per key, or one per query and key."""
    if mask is None:
        return
    batch, queries = (dims(q) or ())[:2]
    allowed = ((batch,), (batch, (dims(keys) or (None, None))[1]), (batch, queries, (dims(keys) or (None, None))[1]))
    match.require(dims(mask) in allowed, f"the mask has shape {dims(mask)}, which is no length and no switch", mask)


def _parts(op: Builder, heads: Heads, bias: ir.Value) -> tuple[ir.Value, ...]:
    """Cut a bias into those of queries, keys and values."""
    widths, known = heads.widths, constant(bias)
    if known is None:
        return split_last(op, bias, widths, "widths")
    cuts = np.cumsum(widths)[:-1]
    return tuple(op.constant(part, f"bias_{n}") for n, part in zip("qkv", np.split(known, cuts), strict=True))
