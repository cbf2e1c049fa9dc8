"""Normalise a vector in one node, and drop a positive factor that cancels.

Before::

    x ─ Div(count) ─┬─ ReduceL2 ─ Clip(1e-12) ─┐
                    └──────────────────────────┴─ Div ─ y

After::

    x ─ LpNormalization ─ y

Meets: torch.nn.functional.normalize behind mean pooling, in sentence embedders.
Numerics: reassociated, for vectors that are zero or longer than the guard of the division (1e-12 in torch): a shorter
    one would come out shorter than 1, and now comes out as a unit vector.
Source: ONNX operator LpNormalization-22; ONNX Runtime's kernel gives zero for a zero vector, as the division does.
    ‖x / c‖ = ‖x‖ / c for c > 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import attribute, dims, integers, number, rank
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant, either, scalar
from onnxopt.spec import Reassociated

SMALLEST_NORM = 1e-10


@register
class LowerNormalize(Rule):
    """X / max(‖x‖, ε)  →  LpNormalization(x)."""

    name = "lower-normalize"
    numerics = Reassociated(rtol=1e-5, atol=1e-6)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """The axes are an input of ReduceL2 since opset 18; the lower bound is Clip or Max."""
        for norm in (op.ReduceL2(x, constant("axes"), keepdims=1), op.ReduceL2(x, keepdims=1, axes=(-1,))):
            bounded = either(op.Clip(norm, scalar(name="smallest"), None), op.Max(norm, scalar(name="smallest")))
            yield op.Div(x, bounded)

    def guard(self, match: Match, x: ir.Value) -> None:
        """float32, over the last axis, with a bound that only guards the division."""
        match.require(x.dtype == ir.DataType.FLOAT, f"x is {x.dtype}; the CPU kernel takes float32", x)
        axes = integers(match.values.get("axes"))
        match.require(axes is None or axes in ((-1,), ((rank(x) or 0) - 1,)), f"normalises axes {axes}", x)
        match.require(0 < match.number("smallest") <= SMALLEST_NORM, "the bound is large enough to change vectors", x)

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        """One node."""
        return op.LpNormalization(x, axis=-1, p=2)


@register
class DropScaleBeforeNormalize(Rule):
    """LpNormalization(x / max(c, ε))  →  LpNormalization(x), for one c per vector."""

    name = "drop-scale-before-normalize"
    numerics = Reassociated(rtol=1e-5, atol=1e-6)

    def patterns(self, op: Ops, x: Pat, c: Pat) -> Iterator[Pat]:
        """The count of mean pooling, kept above zero."""
        count = either(
            op.Clip(c, scalar(name="smallest"), None, _shared=True), op.Max(c, scalar(name="smallest"), _shared=True)
        )
        yield op.LpNormalization(op.Div(x, count), axis=-1, p=2)

    def guard(self, match: Match, x: ir.Value) -> None:
        """The divisor is positive and the same along the vector."""
        divisor = next(v for v in match.root.inputs[0].producer().inputs if v is not x)  # type: ignore[union-attr]  # a matched Div
        match.require((number(match.values["smallest"]) or 0) > 0, "the divisor may be negative", x)
        match.require((dims(divisor) or (None,))[-1] == 1, "the divisor varies along the vector", x)
        match.require(attribute(match.root, "p") == 2, "another norm", x)

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        """The norm takes care of the scale."""
        return op.LpNormalization(x, axis=-1, p=2)
