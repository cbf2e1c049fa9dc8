"""What the passes of this stage share: the layers that a plan names, and the way through a grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import attribute, is_op
from onnxopt.graph.linears import Linear, keep_labels
from onnxopt.qmath.precision import Affine, Kind, Plan, PlannedLinear
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.vocabulary import constant as any_constant


@dataclass(frozen=True)
class PlannedLayer:
    """A linear layer and what the plan has for it."""

    linear: Linear
    planned: PlannedLinear


class Planned(Rule):
    """Linear layers that a plan gives one kind of precision.

    Args:
        plan: what becomes of each layer; an empty one leaves all as they are.
    """

    kind: Kind

    def __init__(self, plan: Plan | None = None) -> None:
        self.plan = plan or Plan()
        self._model: ir.Model | None = None
        self._linears: dict[ir.Node, Linear] = {}

    def patterns(self, op: Ops, x: Pat, maybe_bias: Pat) -> Iterator[Pat]:
        """A product with a constant matrix, stored either way, with or without a bias."""
        turned = op.Transpose(any_constant("weight"), _shared=True)
        for weight in (any_constant("weight"), turned):
            yield op.Add(op.MatMul(x, weight), any_constant("bias"))
            yield op.MatMul(x, weight)
            yield op.Gemm(x, weight, maybe_bias)

    def guard(self, match: Match) -> None:
        """The plan decides; labels stay those that the graph had before layers were replaced."""
        if self._model is not match.model:
            self._model = match.model
            self._linears = {linear.root: linear for linear in keep_labels(match.model)}
        linear = self._linears.get(match.root)
        match.needs(linear is not None, "no linear layer, or its bias comes behind")
        planned = self.planned(linear.label) if linear is not None else None
        match.needs(planned is not None, "not planned")
        if linear is None or planned is None:
            return
        match.note(PlannedLayer(linear, planned))
        rest = _rest(match)
        match.require(rest is None or attribute(match.root, "beta") == 1.0, "what is added is scaled", rest)

    def planned(self, label: str) -> PlannedLinear | None:
        """Return the plan of a layer."""
        return self.plan.get(label, self.kind)

    def bias(self, op: Builder, match: Match) -> ir.Value | None:
        """Return the bias: the plan's, or the layer's own."""
        layer = match.noted(PlannedLayer)
        bias = layer.planned.bias
        return layer.linear.bias if bias is None else op.constant(bias.astype(np.float32), "bias")

    def with_rest(self, op: Builder, match: Match, product: ir.Value) -> ir.Value:
        """Return the layer's result: a Gemm may add a matrix, such as the residual, where others have their bias."""
        rest = _rest(match)
        return product if rest is None else op.Add(product, rest)


def _rest(match: Match) -> ir.Value | None:
    """Return what a Gemm adds that is no bias of its columns."""
    if not is_op(match.root, "Gemm") or len(match.root.inputs) < 3:
        return None
    if match.noted(PlannedLayer).linear.bias is not None:
        return None
    return match.root.inputs[2]


def is_float(value: ir.Value) -> bool:
    """Tell whether a value is float32, the only type that is quantized here."""
    return value.dtype == ir.DataType.FLOAT


def through_grid(op: Builder, x: ir.Value, grid: Affine) -> ir.Value:
    """Return x rounded to a grid, as float."""
    scale = op.constant(np.array(grid.scale, np.float32), "scale")
    zero_point = op.constant(np.array(grid.zero_point, grid.dtype), "zero_point")
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)
