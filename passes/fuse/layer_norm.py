"""Fuse the decomposed layer normalization into one LayerNormalization node.

Before::

    x ─┬─ ReduceMean ─┐
       └──────────────┴─ Sub ─┬─ Pow(2) ─ ReduceMean ─ Add(ε) ─ Sqrt ─┐
                              └───────────────────────────────────────┴─ Div ─ Mul(γ) ─ Add(β) ─ y

After::

    x ─ LayerNormalization(γ, β, ε) ─ y

Meets: TorchScript below opset 17; TensorFlow and Keras, which move the mean behind the product, x · s + (β − mean · s)
    with s = γ / √(var + ε); flax, whose variance is max(0, mean(x²) − mean²) and whose statistics lose their axis and
    get it back by a Reshape; Div, or Mul by Reciprocal, with γ on either. Over another axis than the last, as over the
    channels of images, it stands between two Transposes: [1, 512, 256] over 512 takes 0.16 ms, spelled out 0.36 ms (one
    thread, onnxruntime 1.32.0, AVX-512 EPYC, 2026-11-30).
Numerics: reassociated. The runtime computes mean and variance in one pass. A difference of squares over another axis
    stays: where a channel hardly varies it is rounding noise, 0.9 % of the largest value between two orders of sums
    in magika's first norm.
Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450, eq. 4; ONNX operator LayerNormalization-17; `tf.nn.moments` and
    `tf.nn.batch_normalization`; `flax.linen.LayerNorm` with use_fast_variance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import attribute, dims, rank
from onnxopt.graph.dimensions import has_axis_of_one, one_axis_of
from onnxopt.graph.linears import name_after
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import FLOATS, constant, either, kept, product, reduced, scalar, square_root, squared
from onnxopt.spec import Reassociated


@dataclass(frozen=True)
class Along:
    """The axis that is normalized."""

    axis: int


def require_along(match: Match, x: ir.Value, axis: int, *names: str) -> None:
    """Refuse unless every bound constant is a vector along an axis of x, as long as that."""
    shape = dims(x) or ()
    for name in names:
        value = match.values.get(name)
        if value is None:
            continue
        found = dims(value) or ()
        wide = (*(1,) * (len(shape) - len(found)), *found)
        wanted = [shape[axis], *(1,) * (len(shape) - 1 - axis)]
        along = isinstance(shape[axis], int) and wide == (*(1,) * axis, *wanted)
        match.require(along, f"{name} has shape {found}, needs [{', '.join(map(str, wanted))}]", value)


def as_vector(op: Builder, match: Match, value: ir.Value) -> ir.Value:
    """Return a constant as a vector."""
    if rank(value) == 1:
        return value
    name = next(name for name, bound in match.values.items() if bound is value)
    vector = op.constant(match.array(name).reshape(-1), name)
    name_after(vector, [value])
    return vector


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
        """The statistics are over one axis, which they keep as 1, and γ and β are vectors along it."""
        match.require(x.dtype in FLOATS, f"x is {x.dtype}; LayerNormalization takes a float tensor", x)
        match.require(rank(match.root.outputs[0]) == rank(x), "a constant gives the result more axes", x)
        statistics = {role: match.named[role] for role in ("mean", "power", "variance") if role in match.named}
        axes = {one_axis_of(node, rank(x) or 0) for node in statistics.values()}
        axis = axes.pop()
        match.require(axis is not None and not axes, "the statistics are not over the same one axis", x)
        match.require(
            "power" not in statistics or axis == (rank(x) or 0) - 1,
            "a difference of squares over another axis than the last, whose rounding no other order repeats",
            x,
        )
        match.needs((dims(x) or ())[axis or 0] != 1, "one number has no variance")
        spread = match.named["spread"].outputs[0]
        moved = "mean_kept" in match.named
        mean = match.named["mean_kept" if moved else "mean"].outputs[0]
        behind = moved or "variance_kept" in match.named
        match.require(
            axis is not None
            and has_axis_of_one(mean, x, axis, [statistics["mean"]], moved=moved)
            and has_axis_of_one(spread, x, axis, list(statistics.values()), moved=behind),
            "the statistics are not known to keep their axis",
            x,
        )
        require_along(match, x, axis or 0, "gamma", "beta")
        match.note(Along(axis or 0))

    def rewrite(self, op: Builder, match: Match, x: ir.Value, gamma: ir.Value) -> ir.Value:
        """One node with the graph's own ε, between Transposes where the axis is not the last."""
        beta, axis, last = match.values.get("beta"), match.noted(Along).axis, (rank(x) or 0) - 1
        order = [*(other for other in range(last + 1) if other != axis), axis]
        vectors = [None if value is None else as_vector(op, match, value) for value in (gamma, beta)]
        turned = x if axis == last else op.Transpose(x, perm=order)
        normal = op.LayerNormalization(turned, *vectors, axis=-1, epsilon=match.number("epsilon"), stash_type=1)
        return normal if axis == last else op.Transpose(normal, perm=[order.index(at) for at in range(last + 1)])


@register
class FuseLayerNormBias(Rule):
    """LayerNormalization(x, γ) + β  →  LayerNormalization(x, γ, β)."""

    name = "fuse-layer-norm-bias"
    min_opset = 17
    numerics = Reassociated(rtol=1e-5, atol=1e-6)

    def patterns(self, op: Ops, x: Pat, gamma: Pat) -> Iterator[Pat]:
        """The bias behind a normalization without one, or behind the Transpose that follows it."""
        norm = op.LayerNormalization(x, gamma, _name="norm")
        yield op.Add(norm, constant("beta"))
        yield op.Add(op.Transpose(norm, _name="back"), constant("beta"))

    def guard(self, match: Match, x: ir.Value) -> None:
        """β must be a vector along the normalized axis: another shape would broadcast."""
        order = attribute(match.named["back"], "perm") if "back" in match.named else None
        match.require("back" not in match.named or order is not None, "a Transpose without perm", x)
        match.require(attribute(match.named["norm"], "axis") in (-1, (rank(x) or 0) - 1), "it has several axes", x)
        y = match.root.outputs[0]
        axis = (rank(x) or 0) - 1 if order is None else list(order).index((rank(x) or 0) - 1)
        match.require(rank(y) == rank(x), "β gives the result its axes", x)
        require_along(match, y, axis, "beta")

    def rewrite(self, op: Builder, match: Match, x: ir.Value, gamma: ir.Value, beta: ir.Value) -> ir.Value:
        """Bias inside."""
        norm = match.named["norm"]
        normal = op.LayerNormalization(
            x,
            gamma,
            as_vector(op, match, beta),
            axis=attribute(norm, "axis"),
            epsilon=attribute(norm, "epsilon"),
            stash_type=attribute(norm, "stash_type"),
        )
        return op.Transpose(normal, perm=attribute(match.named["back"], "perm")) if "back" in match.named else normal
