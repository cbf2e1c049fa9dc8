"""Quantize the input of a linear layer on a fixed grid and its weight per column: static int8.

Before::

    x ─ MatMul(W) ─ Add(b) ─ y

After::

    x ─ QuantizeLinear(s, z) ─ DequantizeLinear(s, z) ─ MatMul(DequantizeLinear(Ŵ, t)) ─ Add(b̂) ─ y

Meets: linear layers that the plan has in `int8`, as MatMul with and without Add, and as Gemm, the weight as it is or
    transposed.
Numerics: lossy; the driver asks for 6 dB of signal to noise at every layer, which a wrong scale or axis does not
    have. What the model loses as a whole is measured against its budget.
Source: ONNX QuantizeLinear-21 and DequantizeLinear-21; grids and weights come from calibration (`onnxopt.quantize`).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.graph.linears import name_after
from onnxopt.passes.words.planned import Planned, facts_of, is_float, through_grid
from onnxopt.qmath.precision import Kind
from onnxopt.rewrite import Builder, Match
from onnxopt.rewrite.registry import register
from onnxopt.spec import SQNR, Lossy


@register
class QuantizeLinearStatic(Planned):
    """X @ W + b  →  DQ(Q(X)) @ DQ(Ŵ) + b̂."""

    name = "quantize-static"
    min_opset = 13
    numerics = Lossy(SQNR, 6.0)
    kind: Kind = "int8"
    enables = ("lower-quantized-linear",)

    def guard(self, match: Match) -> None:
        """The plan must have the layer's grid and its weight."""
        super().guard(match)
        linear, planned = facts_of(match)
        x = linear.x
        match.require(is_float(x), f"x is {x.dtype}; only float32 is quantized", x)
        match.require(planned.activation is not None and planned.columns is not None, "the plan has no grid", x)
        match.facts.update(grid=planned.activation, columns=planned.columns)

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """Through the grids, then the product in float."""
        linear, planned = facts_of(match)
        grid, (codes, scales) = match.facts["grid"], match.facts["columns"]
        if planned.factors is not None:
            x = op.Mul(x, op.constant((1 / planned.factors).astype(np.float32), "smooth"))
        rounded = through_grid(op, x, grid)
        stored = op.constant(codes, "weight")
        name_after(stored, [linear.weight])
        weight = op.DequantizeLinear(stored, op.constant(scales, "weight_scale"), axis=1)
        product = op.MatMul(rounded, weight)
        bias = self.bias(op, match)
        return self.with_rest(op, match, product if bias is None else op.Add(product, bias))
