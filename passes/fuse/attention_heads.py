"""Let Attention split and merge the heads itself.

Before::

    q [batch, sequence, heads·size] ─ Reshape ─ Transpose ─┐
    k, v likewise ─────────────────────────────────────────┴─ Attention ─ Transpose ─ Reshape ─ y

After::

    q, k, v ─ Attention(q_num_heads, kv_num_heads) ─ y

Meets: every exporter.
Numerics: exact up to the runtime's order of the same sums.
Source: ONNX operator Attention-23, inputs of rank 3.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import Dim, dims
from onnxopt.patterns import Ops, Pat, constant
from onnxopt.rewrite import Builder, Match, Reassociated, Rule, register

BETWEEN = (0, 2, 1, 3)  # [batch, sequence, heads, size] <-> [batch, heads, sequence, size]


@register
class FuseAttentionHeads(Rule):
    """Attention on heads between Transposes  →  Attention on tokens."""

    name = "fuse-attention-heads"
    min_opset = 23
    numerics = Reassociated(rtol=1e-5, atol=1e-6)
    enables = ("pack-qkv", "lower-attention")

    def patterns(self, op: Ops, q: Pat, k: Pat, v: Pat, maybe_mask: Pat) -> Iterator[Pat]:
        """The four Reshape and Transpose pairs."""
        heads = [
            op.Transpose(op.Reshape(x, constant(), _name=f"split_{name}"), perm=BETWEEN)
            for x, name in ((q, "q"), (k, "k"), (v, "v"))
        ]
        attention = op.Attention(*heads, maybe_mask, _name="attention")
        yield op.Reshape(op.Transpose(attention, perm=BETWEEN), constant())

    def guard(self, match: Match, q: ir.Value, k: ir.Value, v: ir.Value) -> None:
        """Every split must cut the last axis into heads, and the merge must undo it."""
        counts = {}
        for name, value in (("q", q), ("k", k), ("v", v)):
            counts[name] = _heads(dims(value), dims(match.named[f"split_{name}"].outputs[0]))
            match.require(counts[name] is not None, f"{name} is not cut into heads along its last axis", value)
        match.require(counts["k"] == counts["v"], "keys and values have different numbers of heads", k)
        merged = dims(match.root.outputs[0]) or ()
        match.require(
            len(merged) == 3 and merged[:2] == (dims(q) or ())[:2], "the heads are not merged into tokens", match.root
        )
        match.require("q_num_heads" not in match.named["attention"].attributes, "the attention works on tokens already")
        match.facts.update(q_num_heads=counts["q"], kv_num_heads=counts["k"])

    def rewrite(
        self, op: Builder, match: Match, q: ir.Value, k: ir.Value, v: ir.Value, maybe_mask: ir.Value | None
    ) -> ir.Value:
        """Inputs of rank 3."""
        attributes = {name: attr.value for name, attr in match.named["attention"].attributes.items()}
        return op.Attention(q, k, v, maybe_mask, **{**attributes, **match.facts})


def _heads(tokens: tuple[Dim, ...] | None, split: tuple[Dim, ...] | None) -> int | None:
    """Return the number of heads when [a, b, heads·size] became [a, b, heads, size]."""
    if (
        tokens is None
        or split is None
        or len(tokens) != 3
        or len(split) != 4
        or tokens[:2] != split[:2]
        or None in tokens[:2]
    ):
        return None
    width, heads, size = tokens[2], split[2], split[3]
    if isinstance(width, int) and isinstance(heads, int) and isinstance(size, int) and heads * size == width:
        return heads
    return None
