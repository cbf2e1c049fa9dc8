"""Fuse the decomposed root-mean-square normalization into one RMSNormalization node.

Before::

    x ─┬─ Pow(2) ─ ReduceMean ─ Add(ε) ─ Sqrt ─ Reciprocal ─┐
       └────────────────────────────────────────────────────┴─ Mul ─ Mul(γ) ─ y

After::

    x ─ RMSNormalization(γ, ε) ─ y

Meets: Llama-like models exported below opset 23 or by TorchScript; 1/√ as Div, Reciprocal or Pow(-½); γ on either side.
Numerics: reassociated.
Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; ONNX operator RMSNormalization-23.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.passes.fuse.layer_norm import require_last_axis, require_vector
from onnxopt.patterns import FLOATS, Ops, Pat, constant, either, mean_last, scalar, square_root, squared
from onnxopt.rewrite import Builder, Match, Reassociated, Rule, register


@register
class FuseRMSNorm(Rule):
    """x / √(mean(x²) + ε) · γ  →  RMSNormalization(x, γ)."""

    name = "fuse-rms-norm"
    min_opset = 23
    numerics = Reassociated(rtol=2e-5, atol=2e-6)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Three ways to divide by the root."""
        power = op.Add(mean_last(squared(x), "axes"), scalar(name="epsilon"))
        root = square_root(power)
        normal = either(
            op.Mul(x, op.Reciprocal(root)),  # torch.rsqrt in TorchScript and dynamo
            op.Mul(x, op.Div(scalar(1.0), root)),
            op.Mul(x, op.Pow(power, scalar(-0.5))),
            op.Div(x, root),
        )
        yield op.Mul(normal, constant("gamma"))

    def guard(self, match: Match, x: ir.Value) -> None:
        """The mean is over the last axis and γ is a vector of its length."""
        match.require(x.dtype in FLOATS, f"x is {x.dtype}; RMSNormalization takes a float tensor", x)
        require_last_axis(match, x, "axes")
        require_vector(match, x, "gamma")

    def rewrite(self, op: Builder, match: Match, x: ir.Value, gamma: ir.Value) -> ir.Value:
        """One node with the graph's own ε."""
        return op.RMSNormalization(x, gamma, axis=-1, epsilon=match.number("epsilon"), stash_type=1)
