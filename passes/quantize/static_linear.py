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

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxopt.graph import constant
from onnxopt.linears import name_after
from onnxopt.passes.quantize.planned import is_float, require_planned, spellings
from onnxopt.patterns import Ops, Pat
from onnxopt.precision import Plan
from onnxopt.rewrite import Builder, Lossy, Match, Rule, register
from onnxopt.spec import SQNR


@register
class QuantizeLinearStatic(Rule):
    """X @ W + b  →  DQ(Q(X)) @ DQ(Ŵ) + b̂."""

    name = "quantize-static"
    min_opset = 13
    numerics = Lossy(SQNR, 6.0)
    enables = ("lower-quantized-linear",)

    def __init__(self, plan: Plan | None = None) -> None:
        """Take the plan; without one there is nothing to do."""
        self.plan = plan or Plan()

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Every spelling of a linear layer."""
        yield from spellings(op, x)

    def guard(self, match: Match, x: ir.Value) -> None:
        """The plan must have the layer's grid and its weight."""
        linear, planned = require_planned(match, self.plan, "int8")
        match.require(is_float(x), f"x is {x.dtype}; only float32 is quantized", x)
        match.require(planned.activation is not None and planned.columns is not None, "the plan has no grid", x)
        match.facts.update(linear=linear, planned=planned)

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """Through the grids, then the product in float."""
        linear, planned = match.facts["linear"], match.facts["planned"]
        grid, (codes, scales) = planned.activation, planned.columns
        if planned.factors is not None:
            x = op.Mul(x, op.constant((1 / planned.factors).astype(np.float32), "smooth"))
        scale = op.constant(np.array(grid.scale, np.float32), "scale")
        zero_point = op.constant(np.array(grid.zero_point, grid.dtype), "zero_point")
        rounded = op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)
        stored = op.constant(codes, "weight")
        name_after(stored, [linear.weight])
        weight = op.DequantizeLinear(stored, op.constant(scales, "weight_scale"), axis=1)
        product = op.MatMul(rounded, weight)
        bias = planned.bias if planned.bias is not None else constant(linear.bias)
        return product if bias is None else op.Add(product, op.constant(bias, "bias"))
