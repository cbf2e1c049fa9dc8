"""Write a masked sum over tokens as one product with the mask.

Before::

    mask ─ Unsqueeze(-1) ─ Cast ─┐
    hidden ──────────────────────┴─ Mul ─ ReduceSum(axis 1) ─ y

After::

    mask ─ Cast ─ Unsqueeze(1) ─┐
    hidden ─────────────────────┴─ MatMul ─ Squeeze(1) ─ y

Meets: sentence-transformers' mean pooling in every exporter.
Numerics: reassociated. The product adds in another order; a masked position counts as zero either way.
Source: Reimers & Gurevych 2019, arXiv:1908.10084, section 3 (mean pooling). The [batch, sequence, width] product is not
    written to memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import attribute, dims, integers
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import FLOATS, either, one_axis
from onnxopt.spec import Reassociated


@register
class FuseMeanPooling(Rule):
    """Σₛ hidden[b, s, :] · mask[b, s]  →  mask[b, 1, s] @ hidden[b, s, :]."""

    name = "fuse-mean-pooling"
    min_opset = 13
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("lower-normalize",)

    def patterns(self, op: Ops, hidden: Pat, mask: Pat) -> Iterator[Pat]:
        """Cast before or after the new axis; the weights serve the count too, so they may be shared."""
        column = either(
            op.Cast(op.Unsqueeze(mask, one_axis("column"), _shared=True), _shared=True, _name="cast"),
            op.Unsqueeze(op.Cast(mask, _shared=True, _name="cast"), one_axis("column"), _shared=True),
        )
        yield op.ReduceSum(op.Mul(hidden, column), one_axis("axes"), keepdims=0)

    def guard(self, match: Match, hidden: ir.Value, mask: ir.Value, axes: ir.Value, column: ir.Value) -> None:
        """hidden [batch, sequence, width], mask [batch, sequence], summed over the sequence."""
        match.require(hidden.dtype in FLOATS, f"hidden is {hidden.dtype}", hidden)
        tall, flat = dims(hidden) or (), dims(mask) or ()
        match.require(
            len(tall) == 3 and len(flat) == 2 and tall[:2] == flat and None not in flat,
            "not [batch, sequence] weights",
            mask,
        )
        match.require(integers(axes) in ((1,), (-2,)), "not summed over the sequence", axes)
        match.require(integers(column) in ((-1,), (2,)), "the mask is not a column", mask)
        match.require(
            ir.DataType(attribute(match.named["cast"], "to")) == hidden.dtype,
            "weights and tokens differ in type",
            hidden,
        )

    def rewrite(self, op: Builder, hidden: ir.Value, mask: ir.Value) -> ir.Value:
        """A row of weights times the tokens."""
        if hidden.dtype is None:
            raise ValueError("the guard requires a dtype")
        row = op.Unsqueeze(op.Cast(mask, to=hidden.dtype.value), op.ints([1], "row"))
        return op.Squeeze(op.MatMul(row, hidden), op.ints([1], "row_axis"))
