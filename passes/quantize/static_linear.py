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

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph.linears import name_after
from onnxopt.passes.words.planned import Planned, PlannedLayer, is_float, through_grid
from onnxopt.qmath.precision import Affine, Kind
from onnxopt.rewrite import Builder, Match
from onnxopt.rewrite.registry import register
from onnxopt.spec import SQNR, Array, Lossy


@dataclass(frozen=True)
class Grids:
    """The grid of the input, and the weight in int8 with a scale for each of its columns."""

    activation: Affine
    codes: Array
    scales: Array


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
        layer = match.noted(PlannedLayer)
        x, grid, columns = layer.linear.x, layer.planned.activation, layer.planned.columns
        match.require(is_float(x), f"x is {x.dtype}; only float32 is quantized", x)
        match.require(grid is not None and columns is not None, "the plan has no grid", x)
        if grid is not None and columns is not None:
            match.note(Grids(grid, *columns))

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """Through the grids, then the product in float."""
        layer, grids = match.noted(PlannedLayer), match.noted(Grids)
        factors = layer.planned.factors
        if factors is not None:
            x = op.Mul(x, op.constant((1 / factors).astype(np.float32), "smooth"))
        rounded = through_grid(op, x, grids.activation)
        stored = op.constant(grids.codes, "weight")
        name_after(stored, [layer.linear.weight])
        weight = op.DequantizeLinear(stored, op.constant(grids.scales, "weight_scale"), axis=1)
        product = op.MatMul(rounded, weight)
        bias = self.bias(op, match)
        return self.with_rest(op, match, product if bias is None else op.Add(product, bias))
