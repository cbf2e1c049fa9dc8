"""Fuse the erf and tanh forms of GELU into one Gelu node.

Before::

    x ─┬─ Div(√2) ─ Erf ─ Add(1) ─┐
       └─ Mul(½) ─────────────────┴─ Mul ─ y

After::

    x ─ Gelu ─ y

Meets: torch.onnx dynamo and TorchScript, optimum, TensorFlow, JAX; Div(√2) or Mul(1/√2), erfc for erf, ½ in any of
    three places or as a Div by 2, operands in any order, constants of rank 0 or 1; the tanh form of GPT-2 with Pow or
    Mul for the cube, the factors in any bracketing.
Numerics: reassociated. One rounding differs per spelling.
Source: Hendrycks & Gimpel 2016, arXiv:1606.08415, eq. 2 and its tanh approximation; ONNX operator Gelu-20.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import FLOATS, cubed, either, product, scalar, scaled, squared
from onnxopt.spec import Reassociated


def _gated(op: Ops, x: Pat, gate: Pat) -> Iterator[Pat]:
    """x · ½ · gate, multiplied in any order; Keras halves the gate, transformers' gelu_python the product."""
    yield product(x, scalar(0.5), gate)
    yield op.Div(op.Mul(x, gate), scalar(2.0))  # jax.nn.gelu, approximate=False
    yield op.Mul(x, op.Div(gate, scalar(2.0)))
    yield op.Mul(op.Div(x, scalar(2.0)), gate)


@register
class FuseGelu(Rule):
    """x · ½ · (1 + erf(x / √2))  →  Gelu(x)."""

    name = "fuse-gelu"
    min_opset = 20
    numerics = Reassociated(rtol=1e-5, atol=1e-6)
    enables = ("lower-gelu",)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """½ in three places; erf, or erfc as JAX writes it: 1 − erf(−x / √2)."""
        root = 1 / math.sqrt(2)
        mirrored = either(scaled(op.Neg(x), root), op.Neg(scaled(x, root)), scaled(x, -root))
        yield from _gated(op, x, op.Add(op.Erf(scaled(x, root)), scalar(1.0)))
        yield from _gated(op, x, op.Sub(scalar(1.0), op.Erf(mirrored)))

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
        root, coefficient = scalar(math.sqrt(2 / math.pi)), scalar(0.044715)
        cubic = either(op.Mul(cubed(x), coefficient), product(coefficient, x, x, x))
        summed = op.Mul(op.Add(x, cubic), root)  # gelu_new, tf.nn.gelu, jax.nn.gelu
        square = either(op.Mul(squared(x), coefficient), product(coefficient, x, x))
        factored = product(x, root, op.Add(square, scalar(1.0)))  # gelu_fast
        yield from _gated(op, x, op.Add(op.Tanh(either(summed, factored)), scalar(1.0)))

    def guard(self, match: Match, x: ir.Value) -> None:
        """Gelu is defined on floats."""
        match.require(x.dtype in FLOATS, f"x is {x.dtype}; Gelu takes a float tensor", x)

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        """One node that keeps the approximation."""
        return op.Gelu(x, approximate="tanh")
