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
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import dims
from onnxopt.graph.dimensions import copies_first_axis
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated

BETWEEN = (0, 2, 1, 3)  # [batch, sequence, heads, size] <-> [batch, heads, sequence, size]


@dataclass(frozen=True)
class Heads:
    """How many heads the queries are cut into, and the keys and values."""

    queries: int
    keys: int


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
            op.Transpose(op.Reshape(x, _rest=True, _name=f"split_{name}"), perm=BETWEEN)
            for x, name in ((q, "q"), (k, "k"), (v, "v"))
        ]
        attention = op.Attention(*heads, maybe_mask, _name="attention")
        yield op.Reshape(op.Transpose(attention, perm=BETWEEN), _rest=True)

    def guard(self, match: Match, q: ir.Value, k: ir.Value, v: ir.Value) -> None:
        """Every split must cut the last axis into heads, and the merge must undo it."""
        counts: dict[str, int] = {}
        for name, value in (("q", q), ("k", k), ("v", v)):
            found = _heads(value, match.named[f"split_{name}"])
            match.require(found is not None, f"{name} is not cut into heads along its last axis", value)
            counts[name] = found or 0
        match.require(counts["k"] == counts["v"], "keys and values have different numbers of heads", k)
        merged, tokens = dims(match.root.outputs[0]) or (), dims(q) or ()
        match.require(
            len(merged) == 3 and ((merged[:2] == tokens[:2] and None not in tokens[:2]) or _merges(match.root)),
            "the heads are not merged into tokens",
            match.root,
        )
        match.require("q_num_heads" not in match.named["attention"].attributes, "the attention works on tokens already")
        match.note(Heads(counts["q"], counts["k"]))

    def rewrite(
        self, op: Builder, match: Match, q: ir.Value, k: ir.Value, v: ir.Value, maybe_mask: ir.Value | None
    ) -> ir.Value:
        """Inputs of rank 3."""
        heads = match.noted(Heads)
        attributes = {name: attr.value for name, attr in match.named["attention"].attributes.items()}
        attributes |= {"q_num_heads": heads.queries, "kv_num_heads": heads.keys}
        return op.Attention(q, k, v, maybe_mask, **attributes)


def _heads(tokens: ir.Value, reshape: ir.Node) -> int | None:
    """Return the number of heads when [a, b, heads·size] became [a, b, heads, size]."""
    before, split = dims(tokens) or (), dims(reshape.outputs[0]) or ()
    if len(before) != 3 or len(split) != 4:
        return None
    same = before[:2] == split[:2] and None not in before[:2]
    if not same and not copies_first_axis(reshape):
        return None
    width, heads, size = before[2], split[2], split[3]
    if isinstance(width, int) and isinstance(heads, int) and isinstance(size, int) and heads * size == width:
        return heads
    return None


def _merges(reshape: ir.Node) -> bool:
    """Tell whether [a, b, heads, size] becomes [a, b, heads·size], whatever a and b are."""
    before, after = dims(reshape.inputs[0]) or (), dims(reshape.outputs[0]) or ()
    heads, size = before[2:] if len(before) == 4 else (None, None)
    whole = isinstance(heads, int) and isinstance(size, int) and heads * size == after[-1]
    return whole and copies_first_axis(reshape)
