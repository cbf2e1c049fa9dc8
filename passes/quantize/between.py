"""Let what lies between quantized convolutions hand on integers too: put its result on a grid.

Before::

    DQ(a) ─┐
    DQ(b) ─┴─ Add ─ Relu ─ y

After::

    DQ(a) ─┐
    DQ(b) ─┴─ Add ─ Relu ─ Q ─ DQ ─ y

Meets: sums of residuals, products with a gate, the gates HardSigmoid, Sigmoid and HardSwish, pooling, Concat, and what
    only moves elements, wherever the plan has a grid for the result.
Numerics: lossy; 6 dB of signal to noise at every one.
Source: ONNX QuantizeLinear-13. A graph with Q and DQ around every operator is what ONNX Runtime and TensorRT make
    integer kernels of.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph.convs import BETWEEN
from onnxopt.passes.words.planned import is_float, through_grid
from onnxopt.qmath.precision import Plan
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import SQNR, Lossy


@register
class QuantizeBetween(Rule):
    """F(DQ(a), DQ(b))  →  DQ(Q(F(DQ(a), DQ(b))))."""

    name = "quantize-between"
    min_opset = 13
    numerics = Lossy(SQNR, 6.0)
    enables = ("lower-quantized-between",)

    def __init__(self, plan: Plan | None = None) -> None:
        """Take the plan; without one there is nothing to do."""
        self.plan = plan if plan is not None else Plan()

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Each of the operators, with a Relu behind a sum."""
        yield op.Relu(op.Add(x, _rest=True, _name="inner"))
        for kind in sorted(BETWEEN):
            yield getattr(op, kind)(x, _rest=True)

    def guard(self, match: Match, x: ir.Value) -> None:
        """The plan must have a grid for the result, and for what goes in."""
        result, inner = match.root.outputs[0], match.named.get("inner")
        match.needs(result.name in self.plan.grids, "not planned")
        match.require(is_float(x), f"x is {x.dtype}; only float32 is quantized", x)
        if inner is not None:
            match.needs(inner.outputs[0].name not in self.plan.grids, "the sum has a grid of its own")

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        """The same operators on inputs that are on their grids."""
        inner = match.named.get("inner")
        node = inner or match.root
        inputs = [self._input(op, value) for value in node.inputs]
        result = op.node(node.op_type, inputs, {name: attr.value for name, attr in node.attributes.items()})[0]
        if inner is not None:
            result = op.Relu(result)
        return through_grid(op, result, self.plan.grids[match.root.outputs[0].name or ""])

    def _input(self, op: Builder, value: ir.Value | None) -> ir.Value | None:
        grid = self.plan.grids.get(value.name or "") if value is not None else None
        return through_grid(op, value, grid) if value is not None and grid is not None else value
