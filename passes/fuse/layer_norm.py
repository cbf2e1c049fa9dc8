"""Fuse the decomposed layer normalization into one LayerNormalization node.

Before::

    x ─┬─ ReduceMean ─┐
       └──────────────┴─ Sub ─┬─ Pow(2) ─ ReduceMean ─ Add(ε) ─ Sqrt ─┐
                              └───────────────────────────────────────┴─ Div ─ Mul(γ) ─ Add(β) ─ y

After::

    x ─ LayerNormalization(γ, β, ε) ─ y

Meets: TorchScript below opset 17, TensorFlow and Keras exports; with and without γ and β; Div, or Mul by Reciprocal.
Numerics: reassociated. The runtime computes mean and variance in one pass.
Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450, eq. 4; ONNX operator LayerNormalization-17.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import attribute, dims, integers, rank
from onnxopt.patterns import FLOATS, Ops, Pat, constant, either, mean_last, scalar, square_root, squared
from onnxopt.rewrite import Builder, Match, Reassociated, Rule, register


def require_last_axis(match: Match, x: ir.Value, *names: str) -> None:
    """Refuse unless every bound list of axes means the last axis of x."""
    last = (rank(x) or 0) - 1
    for name in names:
        axes = integers(match.values.get(name))
        match.require(axes is None or axes[0] in (-1, last), f"reduces axis {axes and axes[0]}, not the last", x)


def require_vector(match: Match, x: ir.Value, *names: str) -> None:
    """Refuse unless every bound constant is a vector as long as the last axis of x."""
    width = (dims(x) or (None,))[-1]
    for name in names:
        value = match.values.get(name)
        if value is not None:
            match.require(dims(value) == (width,), f"{name} has shape {dims(value)}, needs [{width}]", value)


@register
class FuseLayerNorm(Rule):
    """(x − mean) / √(var + ε) · γ + β  →  LayerNormalization(x, γ, β)."""

    name = "fuse-layer-norm"
    min_opset = 17
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("fuse-layer-norm-bias",)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Scale applied to the quotient, which comes from Div or from a Reciprocal."""
        centred = op.Sub(x, mean_last(x, "mean_axes"))
        deviation = square_root(op.Add(mean_last(squared(centred), "variance_axes"), scalar(name="epsilon")))
        normal = either(op.Div(centred, deviation), op.Mul(centred, op.Reciprocal(deviation)))
        yield op.Mul(normal, constant("gamma"))

    def guard(self, match: Match, x: ir.Value) -> None:
        """The statistics are over the last axis and γ is a vector of its length."""
        match.require(x.dtype in FLOATS, f"x is {x.dtype}; LayerNormalization takes a float tensor", x)
        require_last_axis(match, x, "mean_axes", "variance_axes")
        require_vector(match, x, "gamma")

    def rewrite(self, op: Builder, match: Match, x: ir.Value, gamma: ir.Value) -> ir.Value:
        """One node with the graph's own ε."""
        return op.LayerNormalization(x, gamma, axis=-1, epsilon=match.number("epsilon"), stash_type=1)


@register
class FuseLayerNormBias(Rule):
    """LayerNormalization(x, γ) + β  →  LayerNormalization(x, γ, β)."""

    name = "fuse-layer-norm-bias"
    min_opset = 17
    numerics = Reassociated(rtol=1e-5, atol=1e-6)

    def patterns(self, op: Ops, x: Pat, gamma: Pat) -> Iterator[Pat]:
        """The bias behind a normalization without one."""
        yield op.Add(op.LayerNormalization(x, gamma, _name="norm"), constant("beta"))

    def guard(self, match: Match, x: ir.Value) -> None:
        """β must be a vector: another shape would broadcast."""
        require_vector(match, x, "beta")

    def rewrite(self, op: Builder, match: Match, x: ir.Value, gamma: ir.Value, beta: ir.Value) -> ir.Value:
        """Bias inside."""
        norm = match.named["norm"]
        return op.LayerNormalization(
            x,
            gamma,
            beta,
            axis=attribute(norm, "axis"),
            epsilon=attribute(norm, "epsilon"),
            stash_type=attribute(norm, "stash_type"),
        )
