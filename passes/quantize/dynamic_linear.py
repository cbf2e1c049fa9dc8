"""Quantize the input of a linear layer on the grid of each request and its weight per column: dynamic int8.

Before::

    x ─ MatMul(W) ─ Add(b) ─ y

After::

    x ─ DynamicQuantizeLinear ─ MatMulInteger(Ŵ) ─ Cast ─ Mul(s · t) ─ Add(b) ─ y

Meets: linear layers that the plan has in `int8-dynamic`, in every spelling of a linear.
Numerics: lossy; 6 dB of signal to noise at every layer. The grid spans the whole tensor, so an answer depends a
    little on what else is in the batch.
Source: ONNX DynamicQuantizeLinear-11 and MatMulInteger-10.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import constant
from onnxopt.linears import name_after
from onnxopt.passes.quantize.planned import is_float, require_planned, spellings
from onnxopt.patterns import Ops, Pat
from onnxopt.precision import Plan
from onnxopt.rewrite import Builder, Lossy, Match, Rule, register
from onnxopt.spec import SQNR


@register
class QuantizeLinearDynamic(Rule):
    """X @ W + b  →  s · t · (Q(X) @ Ŵ) + b."""

    name = "quantize-dynamic"
    min_opset = 11
    numerics = Lossy(SQNR, 6.0)
    enables = ("lower-dynamic-linear",)

    def __init__(self, plan: Plan | None = None) -> None:
        """Take the plan; without one there is nothing to do."""
        self.plan = plan or Plan()

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Every spelling of a linear layer."""
        yield from spellings(op, x)

    def guard(self, match: Match, x: ir.Value) -> None:
        """The plan must have the layer's weight."""
        linear, planned = require_planned(match, self.plan, "int8-dynamic")
        match.require(is_float(x), f"x is {x.dtype}; only float32 is quantized", x)
        match.require(planned.columns is not None, "the plan has no weight", x)
        match.facts.update(linear=linear, planned=planned)

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """The integers first, the scales behind them."""
        linear, planned = match.facts["linear"], match.facts["planned"]
        codes, scales = planned.columns
        integers, scale, zero_point = op.node("DynamicQuantizeLinear", [x], {}, outputs=3)
        stored = op.constant(codes, "weight")
        name_after(stored, [linear.weight])
        sums = op.Cast(op.MatMulInteger(integers, stored, zero_point), to=ir.DataType.FLOAT.value)
        product = op.Mul(sums, op.Mul(scale, op.constant(scales, "weight_scale")))
        bias = planned.bias if planned.bias is not None else constant(linear.bias)
        return product if bias is None else op.Add(product, op.constant(bias, "bias"))
