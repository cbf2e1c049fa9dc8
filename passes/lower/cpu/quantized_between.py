"""Run what lies between quantized convolutions on integers.

Before::

    a ─ DQ ─┐
    b ─ DQ ─┴─ Add ─ Relu ─ QuantizeLinear ─ y

After::

    a, b ─ com.microsoft.QLinearAdd ─ y

Meets: the result of quantize-between; sums, products, gates, pooling and Concat in Q/DQ form.
Numerics: lossy, by where results between two steps of a grid fall; 30 dB of signal to noise among the codes.
Source: ONNX Runtime contrib operators QLinearAdd, QLinearMul, QLinearSigmoid, QLinearLeakyRelu, QLinearConcat,
    QLinearAveragePool and QLinearGlobalAveragePool. HardSigmoid is a sum on a grid that ends at 0 and 1. HardSwish is
    x · min(max(x + 3, 0), 6) / 6: a sum on a grid that ends at 0 and 6, and a product whose scale takes the sixth.
    There is no kernel for either: 44 µs where Q, DQ and the float operator take 92 µs ([1, 32, 64, 64], one thread,
    onnxruntime 1.32.0, AVX-512 EPYC, 2026-11-26).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import attribute, constant, is_constant, number
from onnxopt.graph.convs import BETWEEN, CARRYING
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat, Var
from onnxopt.rewrite.registry import register
from onnxopt.spec import SQNR, Lossy

Grid = tuple[ir.Value, ir.Value, ir.Value]  # codes, scale, zero point
SIX, UNIT = 6 / 255, 1 / 255


@dataclass(frozen=True)
class Inputs:
    """The grid of each tensor that goes in, or the number that it is."""

    each: tuple[tuple[Grid | None, float | None], ...]


@register
class LowerQuantizedBetween(Rule):
    """Q(F(DQ(a), DQ(b)))  →  F on integers."""

    name = "lower-quantized-between"
    numerics = Lossy(SQNR, 30.0)
    keeps_shared = True  # others may read the dequantized inputs too

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Each of the operators."""
        scale, zero = Var("result_scale"), Var("result_zero", optional=True)
        yield op.QuantizeLinear(op.Relu(op.Add(x, _rest=True, _name="inner"), _name="act"), scale, zero)
        for kind in sorted(BETWEEN):
            yield op.QuantizeLinear(getattr(op, kind)(x, _rest=True, _name="inner"), scale, zero)

    def guard(self, match: Match) -> None:
        """Every tensor that goes in is on a grid per tensor."""
        inner = match.named["inner"]
        match.require(match.root.outputs[0].dtype == ir.DataType.UINT8, "the kernels are for uint8", match.root)
        match.needs(len(match.root.inputs) > 2, "the grid has no zero point")
        tensors = inner.inputs if inner.op_type in ("Add", "Mul", "Concat") else inner.inputs[:1]
        grids = [_grid(value) for value in tensors]
        constants = [number(value) if is_constant(value) else None for value in tensors]
        known = all(grid is not None or own is not None for grid, own in zip(grids, constants, strict=True))
        match.needs(known, "it reads a tensor in float")
        match.needs(any(grids), "it reads constants only")
        if inner.op_type == "Concat":
            match.needs(all(grids), "it reads a constant")
        if "act" in match.named or inner.op_type == "HardSigmoid":
            match.require(
                _is(match.values.get("result_zero"), 0), "the grid goes below 0, which the activation does not", inner
            )
        if inner.op_type == "HardSigmoid":
            match.require(_is(match.values.get("result_scale"), UNIT), "the grid does not end at 1", inner)
        if inner.op_type in CARRYING:
            grid = grids[0]
            same = (
                grid is not None
                and _equal(grid[1], match.values.get("result_scale"))
                and _equal(grid[2], match.values.get("result_zero"))
            )
            match.needs(same, "the result has another grid")
        match.note(Inputs(tuple(zip(grids, constants, strict=True))))

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        """One kernel, two for HardSwish."""
        inner, given = match.named["inner"], match.noted(Inputs).each
        end = match.values["result_scale"], match.values["result_zero"]
        kind, attributes = inner.op_type, {name: attr.value for name, attr in inner.attributes.items()}
        inputs = [grid or _constant(op, own, place) for place, (grid, own) in enumerate(given)]
        first = inputs[0]
        if kind in CARRYING:
            return op.node(kind, [first[0], *inner.inputs[1:]], attributes)[0]
        if kind in ("Add", "Mul"):
            return op.contrib(f"QLinear{kind}", *inputs[0], *inputs[1], *end)
        if kind == "Concat":
            parts = [part for grid in inputs for part in grid]
            return op.contrib("QLinearConcat", *end, *parts, axis=attribute(inner, "axis"))
        if kind == "Relu":
            return op.contrib("QLinearLeakyRelu", *first, *end, alpha=0.0)
        if kind == "Sigmoid":
            return op.contrib("QLinearSigmoid", *first, *end)
        if kind == "HardSigmoid":
            return _hard_sigmoid(op, first, attribute(inner, "alpha"), attribute(inner, "beta"))
        if kind == "HardSwish":
            return _hard_swish(op, first, end)
        return op.contrib(f"QLinear{kind}", *first, *end, channels_last=0, **attributes)


def _hard_sigmoid(op: Builder, x: Grid, alpha: float, beta: float) -> ir.Value:
    """α x + β on a grid that ends at 0 and 1."""
    codes, scale, zero = x
    own = constant(scale)
    sloped = op.constant(np.asarray(own, np.float32) * np.float32(alpha), "slope")
    return op.contrib("QLinearAdd", codes, sloped, zero, *_constant(op, beta, "beta"), *_scale(op, UNIT, "unit"))


def _hard_swish(op: Builder, x: Grid, end: Sequence[ir.Value | None]) -> ir.Value:
    """The gate ends at 0 and 6 and is read as a sixth of that."""
    six, sixth = _scale(op, SIX, "six"), _scale(op, UNIT, "sixth")
    gate = op.contrib("QLinearAdd", *x, *_constant(op, 3.0, "three"), *six)
    return op.contrib("QLinearMul", *x, gate, *sixth, *end)


def _scale(op: Builder, scale: float, name: str) -> tuple[ir.Value, ir.Value]:
    return op.constant(np.array(scale, np.float32), f"{name}_scale"), op.constant(np.array(0, np.uint8), f"{name}_zero")


def _constant(op: Builder, own: float | None, name: object) -> Grid:
    """Return a number on a grid that holds it exactly."""
    number_of = float(own or 0.0)
    scale = op.constant(np.array(abs(number_of) or 1.0, np.float32), f"constant_{name}_scale")
    code, zero = (1, 0) if number_of > 0 else (0, 1 if number_of else 0)
    return (
        op.constant(np.array(code, np.uint8), f"constant_{name}"),
        scale,
        op.constant(np.array(zero, np.uint8), f"constant_{name}_zero"),
    )


def _grid(value: ir.Value | None) -> Grid | None:
    """Return what a tensor was dequantized from."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
        return None
    codes, scale, zero = node.inputs
    found = constant(scale)
    if codes is None or scale is None or zero is None or found is None or found.size != 1:
        return None
    return (codes, scale, zero) if codes.dtype == ir.DataType.UINT8 else None


def _is(value: ir.Value | None, wanted: float) -> bool:
    found = number(value)
    return found is not None and abs(found - wanted) <= 1e-6 * max(abs(wanted), 1.0)


def _equal(one: ir.Value | None, other: ir.Value | None) -> bool:
    first, second = constant(one), constant(other)
    return first is not None and second is not None and np.array_equal(first, second)
