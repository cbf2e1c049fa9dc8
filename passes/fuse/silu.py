"""Write every spelling of the sigmoid gate in one way.

Before::

    x ─┬─ Neg ─ Exp ─ Add(1) ─┐
       └──────────────────────┴─ Div ─ y

After::

    x ─┬─ Sigmoid ─┐
       └───────────┴─ Mul ─ y

Meets: SiLU, also called swish, and the quick GELU of CLIP with σ(1.702 x): hand-written ones, Keras and TensorFlow
    exports, and Swish of opset 24, which ONNX Runtime has no kernel for on any device.
Numerics: reassociated. The exponential of a large negative x overflows to infinity, whose inverse is 0 as it should be.
Source: Elfwing et al. 2017, arXiv:1702.03118; Ramachandran et al. 2017, arXiv:1710.05941; ONNX operator Swish-24.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxopt.graph import attribute
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import FLOATS, either, scalar
from onnxopt.spec import Reassociated


@register
class FuseSilu(Rule):
    """x / (1 + exp(−α x))  →  x · σ(α x)."""

    name = "fuse-silu"
    numerics = Reassociated(rtol=1e-5, atol=1e-6)
    enables = ("lower-silu",)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """A quotient, a product with an inverse, one operator."""
        negated = either(
            op.Neg(either(op.Mul(x, scalar(name="alpha")), x)),
            op.Mul(op.Neg(x), scalar(name="alpha")),
            op.Mul(x, scalar(name="minus_alpha")),
        )
        below = op.Add(op.Exp(negated), scalar(1.0))
        yield op.Div(x, below)
        yield op.Mul(x, either(op.Reciprocal(below), op.Div(scalar(1.0), below)))
        yield op.Swish(x, _name="swish")

    def guard(self, match: Match, x: ir.Value) -> None:
        """A float tensor."""
        match.require(x.dtype in FLOATS, f"x is {x.dtype}; Sigmoid takes a float tensor", x)

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """A factor of 1 is left out."""
        alpha = 1.0
        if "swish" in match.named:
            alpha = float(attribute(match.named["swish"], "alpha"))
        elif match.values.get("alpha") is not None:
            alpha = match.number("alpha")
        elif match.values.get("minus_alpha") is not None:
            alpha = -match.number("minus_alpha")
        kind = x.dtype.numpy() if x.dtype is not None else np.dtype(np.float32)
        inner = x if alpha == 1.0 else op.Mul(x, op.constant(np.array(alpha, dtype=kind), "alpha"))
        return op.Mul(x, op.Sigmoid(inner))
