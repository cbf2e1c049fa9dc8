"""Quantize a convolution on fixed grids: its input, its weight per output channel, its bias, its result.

Before::

    x ─ Conv(W, b) ─ Relu ─ y

After::

    x ─ Q ─ DQ ─ Conv(DQ(Ŵ, t), DQ(b̂, s · t)) ─ Relu ─ Q ─ DQ ─ y

Meets: convolutions that the plan has in `int8`, plain, grouped and depthwise, in one, two and three dimensions, with
    and without a bias, Relu and Clip.
Numerics: lossy; the driver asks for 6 dB of signal to noise at every one, which a wrong scale or axis does not have.
Source: ONNX QuantizeLinear-13 and DequantizeLinear-13; a bias in int32 on the grid of the product is what
    QLinearConv-10 adds. TensorRT takes it in float.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import constant
from onnxopt.graph.convs import Convolution, find_convs
from onnxopt.graph.linears import name_after
from onnxopt.passes.words.planned import is_float, through_grid
from onnxopt.qmath.affine import bias_codes
from onnxopt.qmath.precision import Plan
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat, Var
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant as any_constant
from onnxopt.spec import SQNR, Array, Lossy


@dataclass(frozen=True)
class PlannedConv:
    """A convolution, its weight in int8 with a scale for each channel, and the bias it is to get if not its own."""

    conv: Convolution
    codes: Array
    scales: Array
    bias: Array | None


@register
class QuantizeConv(Rule):
    """act(X ⊛ W + b)  →  DQ(Q(act(DQ(Q(X)) ⊛ DQ(Ŵ) + DQ(b̂))))."""

    name = "quantize-conv"
    min_opset = 13
    numerics = Lossy(SQNR, 6.0)
    enables = ("quantize-between", "lower-quantized-conv")

    def __init__(self, plan: Plan | None = None) -> None:
        """Take the plan; without one there is nothing to do."""
        self.plan = plan if plan is not None else Plan()
        self._model: ir.Model | None = None
        self._convs: dict[ir.Node, Convolution] = {}

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """With the activation that the grid of the result makes for nothing, or without."""
        conv = op.Conv(x, any_constant("weight"), Var("maybe_bias", optional=True))
        yield op.Relu(conv)
        yield op.Clip(conv, _rest=True)
        yield conv

    def guard(self, match: Match, x: ir.Value) -> None:
        """The plan must have the grids and the weight; labels stay those that the graph had at first."""
        if self._model is not match.model:
            self._model = match.model
            self._convs = {conv.root: conv for conv in find_convs(match.model)}
        conv = self._convs.get(match.root)
        match.needs(conv is not None, "no convolution, or its activation comes behind")
        if conv is None:
            return
        planned = self.plan.get(conv.label, "int8")
        columns = planned.columns if planned is not None else None
        match.needs(columns is not None, "not planned")
        match.require(is_float(x), f"x is {x.dtype}; only float32 is quantized", x)
        match.require(x.name in self.plan.grids, "the plan has no grid for its input", x)
        match.require(conv.result.name in self.plan.grids, "the plan has no grid for its result", match.root)
        if planned is not None and columns is not None:
            match.note(PlannedConv(conv, *columns, planned.bias))

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """Everything through its grid, the convolution in float."""
        planned = match.noted(PlannedConv)
        conv, scales = planned.conv, planned.scales
        grid = self.plan.grids[x.name or ""]
        stored, steps = op.constant(planned.codes, "weight"), op.constant(scales, "weight_scale")
        name_after(stored, [conv.weight])
        inputs = [through_grid(op, x, grid), op.DequantizeLinear(stored, steps, axis=0)]
        bias = planned.bias if planned.bias is not None else constant(conv.bias)
        if bias is not None and self.plan.symmetric:
            inputs.append(op.constant(bias, "bias"))
        elif bias is not None:
            wide, product = bias_codes(bias, grid.scale, scales)
            inputs.append(op.DequantizeLinear(op.constant(wide, "bias"), op.constant(product, "bias_scale"), axis=0))
        attributes = {name: attr.value for name, attr in conv.node.attributes.items()}
        result = op.node("Conv", inputs, attributes)[0]
        if conv.root is not conv.node:
            given = {name: attr.value for name, attr in conv.root.attributes.items()}
            result = op.node(conv.root.op_type, [result, *conv.root.inputs[1:]], given)[0]
        return through_grid(op, result, self.plan.grids[conv.result.name or ""])
