"""Fuse the decomposed layer normalization into one LayerNormalization node.

Before::

    x ─┬─ ReduceMean ─┐
       └──────────────┴─ Sub ─┬─ Pow(2) ─ ReduceMean ─ Add(ε) ─ Sqrt ─┐
                              └───────────────────────────────────────┴─ Div ─ Mul(γ) ─ Add(β) ─ y

After::

    x ─ LayerNormalization(γ, β, ε) ─ y

Meets: TorchScript below opset 17; TensorFlow and Keras, which move the mean behind the product, x · s + (β − mean · s)
    with s = γ / √(var + ε); flax, whose variance is max(0, mean(x²) − mean²) and whose statistics lose their axis and
    get it back by a Reshape; Div, or Mul by Reciprocal, with γ on either.
Numerics: reassociated. The runtime computes mean and variance in one pass.
Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450, eq. 4; ONNX operator LayerNormalization-17; `tf.nn.moments` and
    `tf.nn.batch_normalization`; `flax.linen.LayerNorm` with use_fast_variance.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.dimensions import has_axis_of_one, one_axis_of
from onnxopt.graph import attribute, dims, integers, rank
from onnxopt.patterns import (
    FLOATS,
    Ops,
    Pat,
    constant,
    either,
    kept,
    product,
    reduced,
    scalar,
    square_root,
    squared,
)
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
        """γ on the quotient, on the inverse or behind; the mean taken off in front or behind."""
        raw = reduced("ReduceMean", x, "mean")
        mean = kept(raw, "mean_kept")
        centred = op.Sub(x, mean)
        squares = op.Sub(reduced("ReduceMean", squared(x), "power"), squared(mean))
        variance = either(
            reduced("ReduceMean", squared(centred), "variance"),
            either(op.Max(squares, scalar(0.0)), op.Relu(squares), squares),
        )
        spread = op.Add(kept(variance, "variance_kept"), scalar(name="epsilon"), _name="spread")
        deviation = square_root(spread)
        inverse = either(op.Reciprocal(deviation), op.Div(scalar(1.0), deviation))
        gamma = constant("gamma")
        yield op.Mul(op.Div(centred, deviation), gamma)
        yield product(centred, inverse, gamma)
        factor = op.Mul(inverse, gamma)
        yield op.Add(op.Mul(x, factor), op.Sub(constant("beta"), op.Mul(mean, factor)))

    def guard(self, match: Match, x: ir.Value) -> None:
        """The statistics are over the last axis, which they keep as 1, and γ and β are vectors of its length."""
        match.require(x.dtype in FLOATS, f"x is {x.dtype}; LayerNormalization takes a float tensor", x)
        last = (rank(x) or 0) - 1
        statistics = {role: match.named[role] for role in ("mean", "power", "variance") if role in match.named}
        for node in statistics.values():
            axis = one_axis_of(node, last + 1)
            match.require(axis == last, f"reduces axis {axis}, not the last", x)
        spread = match.named["spread"].outputs[0]
        moved = "mean_kept" in match.named
        mean = match.named["mean_kept" if moved else "mean"].outputs[0]
        match.require(
            has_axis_of_one(mean, x, last, [statistics["mean"]], moved=moved)
            and has_axis_of_one(
                spread, x, last, list(statistics.values()), moved=moved or "variance_kept" in match.named
            ),
            "the statistics are not known to keep their axis",
            x,
        )
        require_vector(match, x, "gamma", "beta")

    def rewrite(self, op: Builder, match: Match, x: ir.Value, gamma: ir.Value) -> ir.Value:
        """One node with the graph's own ε."""
        beta = match.values.get("beta")
        return op.LayerNormalization(x, gamma, beta, axis=-1, epsilon=match.number("epsilon"), stash_type=1)


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
