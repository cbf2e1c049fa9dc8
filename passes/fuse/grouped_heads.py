"""Let Attention share key and value heads among groups of query heads itself.

Before::

    k [batch, groups, keys, size] ─ Unsqueeze ─ Expand ─ Reshape [batch, heads, keys, size] ─┐
    v likewise ──────────────────────────────────────────────────────────────────────────────┴─ Attention(q) ─ y

After::

    q, k, v ─ Attention ─ y

Meets: repeat_kv of transformers by every exporter.
Numerics: reassociated; the same products in another order of the runtime's.
Source: Ainslie et al. 2023, arXiv:2305.13245; ONNX operator Attention-23, whose head h of q reads head h // group of k.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import Dim, attribute, dims
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.sizes.derive import same_dimension
from onnxopt.spec import Reassociated


@register
class FuseGroupedHeads(Rule):
    """Attention(q, repeat(k), repeat(v))  →  Attention(q, k, v)."""

    name = "fuse-grouped-heads"
    min_opset = 23
    numerics = Reassociated(rtol=1e-5, atol=1e-6)
    enables = ("fuse-cache", "fuse-attention-heads")

    def patterns(self, op: Ops, q: Pat, k: Pat, v: Pat, maybe_mask: Pat) -> Iterator[Pat]:
        """Keys and values repeated alike."""
        repeated = [
            op.Reshape(
                op.Expand(
                    op.Unsqueeze(x, _rest=True, _shared=True, _name=f"single_{name}"),
                    _rest=True,
                    _shared=True,
                    _name=f"copies_{name}",
                ),
                _rest=True,
                _shared=True,
                _name=f"heads_{name}",
            )
            for x, name in ((k, "k"), (v, "v"))
        ]
        yield op.Attention(q, *repeated, maybe_mask)

    def guard(self, match: Match, q: ir.Value, k: ir.Value, v: ir.Value) -> None:
        """Copies of a head must lie side by side."""
        match.require("q_num_heads" not in match.root.attributes, "the attention works on tokens", match.root)
        heads = (dims(q) or (None, None))[1]
        for name, value in (("k", k), ("v", v)):
            own = dims(value)
            single = dims(match.named[f"single_{name}"].outputs[0])
            copies = dims(match.named[f"copies_{name}"].outputs[0])
            merged = dims(match.named[f"heads_{name}"].outputs[0])
            match.require(
                _repeats(own, single, copies, merged) and merged is not None and merged[1] == heads,
                f"heads become {copies} and then {merged}",
                value,
            )
        match.require(same_dimension(k, v, 1), "keys and values have different numbers of heads", k)

    def rewrite(
        self, op: Builder, match: Match, q: ir.Value, k: ir.Value, v: ir.Value, maybe_mask: ir.Value | None
    ) -> ir.Value:
        """The operator finds the groups in the shapes."""
        attributes = {name: attribute(match.root, name) for name in match.root.attributes}
        return op.Attention(q, k, v, maybe_mask, **attributes)


_Shape = tuple[Dim, ...] | None


def _repeats(own: _Shape, single: _Shape, copies: _Shape, merged: _Shape) -> bool:
    """[b, groups, keys, size] → [b, groups, 1 and then copies, keys, size] → [b, groups·copies, keys, size]."""
    if own is None or copies is None or merged is None or (len(own), len(copies), len(merged)) != (4, 5, 4):
        return False
    if single != (*own[:2], 1, *own[2:]):
        return False  # copies of all heads one after the other are another order
    if None in own or copies[:2] != own[:2] or copies[3:] != own[2:] or (merged[0], *merged[2:]) != (own[0], *own[2:]):
        return False
    return isinstance(own[1], int) and isinstance(copies[2], int) and merged[1] == own[1] * copies[2]
