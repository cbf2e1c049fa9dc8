"""Fuse the erf and tanh forms of GELU into one Gelu node.

Before::

    x ─┬─ Div(√2) ─ Erf ─ Add(1) ─┐
       └─ Mul(½) ─────────────────┴─ Mul ─ y

After::

    x ─ Gelu ─ y

Meets: torch.onnx dynamo and TorchScript, optimum; Div(√2) or Mul(1/√2), ½ in any of three places, operands in any
    order,
    constants of rank 0 or 1; the tanh form of GPT-2 with Pow or Mul for the cube.
Numerics: reassociated. One rounding differs per spelling.
Source: Hendrycks & Gimpel 2016, arXiv:1606.08415, eq. 2 and its tanh approximation; ONNX operator Gelu-20.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.patterns import FLOATS, Ops, Pat, cubed, either, scalar, scaled
from onnxopt.rewrite import Builder, Match, Reassociated, Rule, register


def _gated(op: Ops, x: Pat, gate: Pat) -> Iterator[Pat]:
    yield op.Mul(op.Mul(x, scalar(0.5)), gate)  # nn.GELU
    yield op.Mul(op.Mul(x, gate), scalar(0.5))  # transformers' gelu_python
    yield op.Mul(x, op.Mul(gate, scalar(0.5)))  # Keras


@register
class FuseGelu(Rule):
    """x · ½ · (1 + erf(x / √2))  →  Gelu(x)."""

    name = "fuse-gelu"
    min_opset = 20
    numerics = Reassociated(rtol=1e-5, atol=1e-6)
    enables = ("lower-gelu",)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """½ in three places."""
        yield from _gated(op, x, op.Add(op.Erf(scaled(x, 1 / math.sqrt(2))), scalar(1.0)))

    def guard(self, match: Match, x: ir.Value) -> None:
        """Gelu is defined on floats."""
        match.require(x.dtype in FLOATS, f"x is {x.dtype}; Gelu takes a float tensor", x)

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        """One node."""
        return op.Gelu(x, approximate="none")


@register
class FuseGeluTanh(Rule):
    """x · ½ · (1 + tanh(√(2/π) · (x + 0.044715 x³)))  →  Gelu(x, tanh)."""

    name = "fuse-gelu-tanh"
    min_opset = 20
    numerics = Reassociated(rtol=1e-5, atol=1e-6)
    enables = ("lower-gelu",)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """½ in three places, the inner polynomial as a sum or factored."""
        root = math.sqrt(2 / math.pi)
        summed = op.Mul(op.Add(x, op.Mul(cubed(x), scalar(0.044715))), scalar(root))  # gelu_new
        factored = op.Mul(  # gelu_fast
            op.Mul(x, scalar(root)), op.Add(op.Mul(op.Mul(x, scalar(0.044715)), x), scalar(1.0))
        )
        yield from _gated(op, x, op.Add(op.Tanh(either(summed, factored)), scalar(1.0)))

    def guard(self, match: Match, x: ir.Value) -> None:
        """Gelu is defined on floats."""
        match.require(x.dtype in FLOATS, f"x is {x.dtype}; Gelu takes a float tensor", x)

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        """One node that keeps the approximation."""
        return op.Gelu(x, approximate="tanh")
