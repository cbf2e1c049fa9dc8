"""What the passes of this stage share: the spellings of a linear layer, and the look into the plan."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.linears import Linear, linear_of
from onnxopt.patterns import Ops, Pat, Var, constant
from onnxopt.precision import Kind, Plan, PlannedLinear
from onnxopt.rewrite import Match


def spellings(op: Ops, x: Pat) -> Iterator[Pat]:
    """A product with a constant, with a bias behind it, inside it, or without one."""
    yield op.Add(op.MatMul(x, Var("weight"), _name="product"), constant("bias"))
    yield op.MatMul(x, Var("weight"), _name="product")
    yield op.Gemm(x, Var("weight"), Var("bias"), _name="product")
    yield op.Gemm(x, Var("weight"), _name="product")


def require_planned(match: Match, plan: Plan, *kinds: Kind) -> tuple[Linear, PlannedLinear]:
    """Leave the region alone unless it is a linear that the plan wants in one of these precisions."""
    linear = linear_of(match.named["product"])
    match.needs(linear is not None, "no product with a constant matrix")
    assert linear is not None  # noqa: S101 - said above
    match.needs(linear.root is match.root, "the bias belongs to the layer")
    match.needs(match.root.op_type != "Gemm" or len(match.root.inputs) < 3 or linear.bias is not None, "not a bias")
    planned = next((found for kind in kinds if (found := plan.get(linear.label, kind)) is not None), None)
    match.needs(planned is not None, "not planned")
    assert planned is not None  # noqa: S101 - said above
    return linear, planned


def is_float(value: ir.Value) -> bool:
    """Tell whether a value is float32, the only type that is quantized here."""
    return value.dtype == ir.DataType.FLOAT
