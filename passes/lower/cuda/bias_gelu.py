"""Let the activation add the bias in front of it.

Before::

    x ─ Add(b) ─ Gelu ─ y

After::

    x ─ com.microsoft.BiasGelu(b) ─ y          x ─ com.microsoft.FastGelu(b) ─ y      (the tanh form)

Meets: the first linear layer of a feed-forward block, on CUDA, where the product is a MatMul.
Numerics: reassociated. The kernels compute erf and tanh in their own way.
Source: ONNX Runtime contrib operators BiasGelu and FastGelu; one pass over the activations less, which on a GPU is what
    an elementwise kernel costs. On the CPU BiasGelu is slower than its parts, so this is for CUDA alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import rank
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant
from onnxopt.spec import Reassociated


@register
class LowerBiasGelu(Rule):
    """Gelu(x + b)  →  com.microsoft.BiasGelu(x, b)."""

    name = "lower-bias-gelu"
    numerics = Reassociated(rtol=1e-5, atol=1e-6)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Both approximations."""
        biased = op.Add(x, constant("bias"))
        yield op.Gelu(biased, approximate="none")
        yield op.Gelu(biased, approximate="tanh", _name="tanh")

    def guard(self, match: Match, x: ir.Value, bias: ir.Value) -> None:
        """A bias per channel; lower precision is a matter of later passes."""
        match.require(x.dtype == ir.DataType.FLOAT, f"x is {x.dtype}; lowered before its precision", x)
        match.require(rank(bias) == 1, "the bias is not one number per channel", bias)

    def rewrite(self, op: Builder, match: Match, x: ir.Value, bias: ir.Value) -> ir.Value:
        """Never swap one approximation for the other."""
        return op.contrib("FastGelu" if "tanh" in match.named else "BiasGelu", x, bias)
