"""Hand queries, keys and values to GroupQueryAttention in one tensor, out of one matrix product.

Before::

    x ─┬─ MatMul(Wq) ─ Add(bq) ─┐
       ├─ MatMul(Wk) ─ Add(bk) ─┼─ GroupQueryAttention(past) ─ y, present
       └─ MatMul(Wv) ─ Add(bv) ─┘

After::

    x ─ MatMul([Wq Wk Wv]) ─ Add([bq bk bv]) ─ GroupQueryAttention(past) ─ y, present

Meets: decoders after lower-cached-attention whose queries and keys go straight from the projection to the kernel; a
    projection that is packed and split again (GPT-2).
Numerics: reassociated. The same sums in a wider product.
Source: ONNX Runtime contrib operator GroupQueryAttention: query may hold [query, key, value] side by side.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import CONTRIB, attribute, dims, integers
from onnxopt.passes.words.projections import one_product, projections, require_projections
from onnxopt.rewrite import AS_IS, Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat, Var
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated

OUTPUTS = 3  # y, present key, present value


@register
class PackCachedQKV(Rule):
    """GroupQueryAttention(xWq + bq, xWk + bk, xWv + bv)  →  GroupQueryAttention(xW + b)."""

    name = "pack-cached-qkv"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    forms = ("packed", AS_IS)

    def patterns(self, op: Ops, x: Pat, packed: Pat) -> Iterator[Pat]:
        """Three parts of one tensor, or three projections of one input, each with or without a bias."""
        parts = [
            op.Split(packed, Var("maybe_widths", optional=True), axis=_last_of_three, _output=index, _name="split")
            for index in range(OUTPUTS)
        ]
        yield op.GroupQueryAttention(*parts, _domain=CONTRIB, _rest=True)
        yield op.GroupQueryAttention(*projections(op, x), _domain=CONTRIB, _rest=True)

    def guard(self, match: Match, x: ir.Value | None, packed: ir.Value | None) -> None:
        """The parts must be as wide as the heads say, in the kernel's order."""
        node = match.root
        heads, groups = attribute(node, "num_heads"), attribute(node, "kv_num_heads")
        widths = [(dims(value) or (None,))[-1] for value in node.inputs[:3]]
        fits = isinstance(widths[0], int) and widths[1] == widths[2] == widths[0] // heads * groups
        match.require(fits, f"queries, keys and values are {widths} wide", node)
        if packed is not None:
            sizes = integers(match.values.get("maybe_widths"))
            match.require(len(match.named["split"].outputs) == OUTPUTS, "the projection has other parts", packed)
            match.require(sizes is None or list(sizes) == widths, f"the parts are {sizes} wide", packed)
            return
        match.require(len(dims(x) or ()) == OUTPUTS, "x is not [batch, sequence, width]", x)
        require_projections(match)

    def rewrite(self, op: Builder, match: Match, x: ir.Value | None, packed: ir.Value | None) -> tuple[ir.Value, ...]:
        """The kernel takes the rest as it was."""
        if packed is None:
            packed = one_product(op, match, x)
        attributes = {name: attr.value for name, attr in match.root.attributes.items()}
        inputs = [packed, None, None, *match.root.inputs[3:]]
        return op.node("GroupQueryAttention", inputs, attributes, domain=CONTRIB, outputs=OUTPUTS)


def _last_of_three(axis: int) -> bool:
    """The last of three axes."""
    return axis in (-1, 2)
