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

from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph.linears import name_after
from onnxopt.passes.words.planned import Planned, PlannedLayer, is_float
from onnxopt.qmath.precision import Kind
from onnxopt.rewrite import Builder, Match
from onnxopt.rewrite.registry import register
from onnxopt.spec import SQNR, Array, Lossy


@dataclass(frozen=True)
class Columns:
    """The weight in int8, and a scale for each of its columns."""

    codes: Array
    scales: Array


@register
class QuantizeLinearDynamic(Planned):
    """X @ W + b  →  s · t · (Q(X) @ Ŵ) + b."""

    name = "quantize-dynamic"
    min_opset = 11
    numerics = Lossy(SQNR, 6.0)
    kind: Kind = "int8-dynamic"
    enables = ("lower-dynamic-linear",)

    def guard(self, match: Match) -> None:
        """The plan must have the layer's weight."""
        super().guard(match)
        layer = match.noted(PlannedLayer)
        x, columns = layer.linear.x, layer.planned.columns
        match.require(is_float(x), f"x is {x.dtype}; only float32 is quantized", x)
        match.require(columns is not None, "the plan has no weight", x)
        if columns is not None:
            match.note(Columns(*columns))

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """The integers first, the scales behind them."""
        linear, columns = match.noted(PlannedLayer).linear, match.noted(Columns)
        integers, scale, zero_point = op.node("DynamicQuantizeLinear", [x], {}, outputs=3)
        stored = op.constant(columns.codes, "weight")
        name_after(stored, [linear.weight])
        sums = op.Cast(op.MatMulInteger(integers, stored, zero_point), to=ir.DataType.FLOAT.value)
        product = op.Mul(sums, op.Mul(scale, op.constant(columns.scales, "weight_scale")))
        bias = self.bias(op, match)
        return self.with_rest(op, match, product if bias is None else op.Add(product, bias))
