"""Fuse the decomposed root-mean-square normalization into one RMSNormalization node.

Before::

    x ─┬─ Pow(2) ─ ReduceMean ─ Add(ε) ─ Sqrt ─ Reciprocal ─┐
       └────────────────────────────────────────────────────┴─ Mul ─ Mul(γ) ─ y

After::

    x ─ RMSNormalization(γ, ε) ─ y

Meets: Llama-like models exported below opset 23 or by TorchScript; 1/√ as Div, Reciprocal or Pow(-½); γ on either side,
    or on 1/√ as flax has it.
Numerics: reassociated.
Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; ONNX operator RMSNormalization-23.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import rank
from onnxopt.graph.dimensions import has_axis_of_one, one_axis_of
from onnxopt.passes.words.norms import require_vector
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import FLOATS, constant, either, kept, product, reduced, scalar, square_root, squared
from onnxopt.spec import Reassociated


@register
class FuseRMSNorm(Rule):
    """x / √(mean(x²) + ε) · γ  →  RMSNormalization(x, γ)."""

    name = "fuse-rms-norm"
    min_opset = 23
    numerics = Reassociated(rtol=2e-5, atol=2e-6)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Three ways to divide by the root; γ behind, or on the inverse as flax has it."""
        mean = kept(reduced("ReduceMean", squared(x), "mean"), "mean_kept")
        power = op.Add(mean, scalar(name="epsilon"), _name="power")
        root = square_root(power)
        inverse = either(
            op.Reciprocal(root),  # torch.rsqrt in TorchScript and dynamo
            op.Div(scalar(1.0), root),
            op.Pow(power, scalar(-0.5)),
        )
        yield product(x, inverse, constant("gamma"))
        yield op.Mul(op.Div(x, root), constant("gamma"))

    def guard(self, match: Match, x: ir.Value) -> None:
        """The mean is over the last axis, which it keeps as 1, and γ is a vector of its length."""
        match.require(x.dtype in FLOATS, f"x is {x.dtype}; RMSNormalization takes a float tensor", x)
        match.require(rank(match.root.outputs[0]) == rank(x), "a constant gives the result more axes", x)
        last, mean = (rank(x) or 0) - 1, match.named["mean"]
        axis = one_axis_of(mean, last + 1)
        match.require(axis == last, f"reduces axis {axis}, not the last", x)
        match.require(
            has_axis_of_one(match.named["power"].outputs[0], x, last, [mean], moved="mean_kept" in match.named),
            "the mean is not known to keep its axis",
            x,
        )
        require_vector(match, x, "gamma")

    def rewrite(self, op: Builder, match: Match, x: ir.Value, gamma: ir.Value) -> ir.Value:
        """One node with the graph's own ε."""
        return op.RMSNormalization(x, gamma, axis=-1, epsilon=match.number("epsilon"), stash_type=1)
