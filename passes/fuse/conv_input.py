"""Fold a factor or a shift per channel into the convolution behind it.

Before::

    x ─ Mul(s) ─ Add(t) ─ Conv(W, b) ─ y

After::

    x ─ Conv(W · s, b + Σ W · t) ─ y                     where the convolution pads nothing
    x ─ Add(t / s) ─ Conv(W · s, b) ─ y                  where it pads: zeros are not shifted

Meets: the learnable scale and shift behind each activation of PP-LCNet and its kin from Paddle; images that are
    normalized in the graph, as (x − mean) / std.
Numerics: reassociated. Products are rounded once, into the weights.
Source: a convolution is linear in its input; a factor commutes with padding by zeros, a shift does not. The CPU session
    folds what comes behind a convolution only (ConvMulFusion, ConvAddFusion of onnxruntime 1.32).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import constant as array_of
from onnxopt.graph import dims, is_constant, is_op, rank
from onnxopt.graph.filters import input_channels, is_padded, per_channel, result_of_constant, scale_inputs
from onnxopt.graph.linears import name_after
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat, Var
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import FLOATS, constant, either
from onnxopt.spec import Array, Reassociated

KINDS = ("Conv", "ConvTranspose")
SHIFTS = ("Add", "Sub")


@dataclass(frozen=True)
class Shift:
    """What is added to each channel."""

    by: Array


@dataclass(frozen=True)
class Scale:
    """What each channel is multiplied by, and the shift behind it when that stands in front."""

    factor: Array
    moved: Array | None


class _Before(Rule):
    """One constant per channel in front of a convolution."""

    numerics = Reassociated(rtol=5e-5, atol=5e-6)

    def conv(self, op: Ops, kind: str, x: Pat) -> Pat:
        """A convolution with constant weights."""
        make: Callable[..., Pat] = getattr(op, kind)
        return make(x, constant("weight"), Var("maybe_bias", optional=True), _name="conv")

    def check(self, match: Match, x: ir.Value, weight: ir.Value) -> dict[str, Array]:
        """Weights of its own, and constants of one number per channel of x or one for all; return these by name."""
        match.require(weight.dtype in FLOATS, f"the weight is {weight.dtype}", weight)
        match.require(len(weight.uses()) == 1, "the weight is shared", weight)
        shape = dims(weight) or ()
        channels = input_channels(match.named["conv"], shape)
        match.require(channels is not None, "the filters have no known channels", weight)
        match.require(rank(x) == len(shape), f"x has rank {rank(x)}, the filters {len(shape)}", x)
        found = (dims(x) or (None, None))[1]
        match.require(found == channels, f"x has {found} channels, the convolution reads {channels}", x)
        constants: dict[str, Array] = {}
        for name in ("by", "shift"):
            if name in match.values:
                taken = per_channel(match.array(name), channels or 0, len(shape))
                match.needs(taken is not None, "what comes before is not one number per channel")
                if taken is not None:
                    constants[name] = taken
        return constants

    def rebuilt(self, op: Builder, match: Match, x: ir.Value, weight: Array, bias: ir.Value | None) -> ir.Value:
        """The convolution of x with other weights."""
        node, old = match.named["conv"], match.values["weight"]
        filters = op.constant(weight.astype(match.array("weight").dtype), "weight")
        if old is not None:
            name_after(filters, [old])
        attributes = {name: attr.value for name, attr in node.attributes.items()}
        return op.node(node.op_type, [x, filters, bias], attributes)[0]


@register
class FoldShiftBeforeConv(_Before):
    """Conv(x + t, W, b)  →  Conv(x, W, b + Σ W · t), where nothing is padded."""

    name = "fold-shift-before-conv"

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """A sum, or a difference."""
        for kind in SHIFTS:
            yield self.conv(op, "Conv", getattr(op, kind)(x, constant("by"), _name=kind, _shared=True))

    def guard(self, match: Match, x: ir.Value, weight: ir.Value, maybe_bias: ir.Value | None) -> None:
        """No padding, here and wherever else the shifted value is read, so that it goes."""
        match.needs(not is_padded(match.named["conv"]), "the zeros that pad the input are not shifted")
        match.require(maybe_bias is None or array_of(maybe_bias) is not None, "the bias is computed", maybe_bias)
        constants = self.check(match, x, weight)
        shifted = next(match.named[kind] for kind in SHIFTS if kind in match.named).outputs[0]
        match.needs(
            only_convolved(shifted) and not any(is_op(use.node, "ConvTranspose") for use in shifted.uses()),
            "something else reads the shifted value",
        )
        match.needs(not any(is_padded(use.node) for use in shifted.uses()), "the shifted value is padded elsewhere")
        match.note(Shift(constants["by"] if "Add" in match.named else -constants["by"]))

    def rewrite(
        self, op: Builder, match: Match, x: ir.Value, weight: ir.Value, maybe_bias: ir.Value | None
    ) -> ir.Value:
        """What the filters make of the shift goes into the bias."""
        filters, node = match.array("weight"), match.named["conv"]
        bias = result_of_constant(node, filters.astype(np.float64), match.noted(Shift).by)
        own = array_of(maybe_bias)
        bias = bias if own is None else bias + own.astype(np.float64)
        attributes = {name: attr.value for name, attr in node.attributes.items()}
        return op.node("Conv", [x, weight, op.constant(bias.astype(filters.dtype), "bias")], attributes)[0]


@register
class FoldScaleBeforeConv(_Before):
    """Conv(x · s + t, W, b)  →  Conv(x + t / s, W · s, b)."""

    name = "fold-scale-before-conv"
    enables = ("fold-shift-before-conv",)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """A product or a quotient, with and without a shift behind; the shift stays in front of the convolution."""
        scaled = either(
            op.Mul(x, constant("by"), _name="scale", _shared=True),
            op.Div(x, constant("by"), _name="quotient", _shared=True),
        )
        for kind in KINDS:
            yield self.conv(op, kind, scaled)
            for sign in SHIFTS:
                yield self.conv(op, kind, getattr(op, sign)(scaled, constant("shift"), _name=sign, _shared=True))

    def guard(self, match: Match, x: ir.Value, weight: ir.Value) -> None:
        """Nothing but convolutions reads what is scaled, so that it goes, and s can be divided by."""
        constants = self.check(match, x, weight)
        scaled = match.named["scale" if "scale" in match.named else "quotient"].outputs[0]
        shifted = [match.named[sign].outputs[0] for sign in SHIFTS if sign in match.named]
        match.needs(
            all(only_convolved(value) for value in shifted or [scaled])
            and (not shifted or (len(scaled.uses()) == 1 and not scaled.is_graph_output())),
            "something else reads the scaled value",
        )
        by, kept = constants["by"], match.array("weight").dtype
        factor = by if "scale" in match.named else _inverse(by)
        match.require(np.isfinite(factor.astype(kept)).all(), "it divides by zero")
        moved = None
        if shifted:
            moved = (constants["shift"] * _inverse(factor)).astype(kept)
            match.require(np.isfinite(moved).all(), "the shift cannot be divided by the factor")
        match.note(Scale(factor, moved))

    def rewrite(self, op: Builder, match: Match, x: ir.Value, maybe_bias: ir.Value | None) -> ir.Value:
        """New weights; a shift is divided by the factor."""
        scale = match.noted(Scale)
        filters = scale_inputs(match.named["conv"], match.array("weight").astype(np.float64), scale.factor)
        if scale.moved is not None:
            sign = next(kind for kind in SHIFTS if kind in match.named)
            moved = scale.moved.reshape(-1, *[1] * (filters.ndim - 2))
            x = op.node(sign, [x, op.constant(moved, "shift")], {})[0]
        return self.rebuilt(op, match, x, filters, maybe_bias)


def only_convolved(value: ir.Value) -> bool:
    """Tell whether nothing reads a value but convolutions with constant weights, as their input."""
    return not value.is_graph_output() and all(
        is_op(use.node, *KINDS) and use.idx == 0 and is_constant(use.node.inputs[1]) for use in value.uses()
    )


def _inverse(factor: Array) -> Array:
    """Return 1 / factor, infinite where that is 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(1 / factor)
