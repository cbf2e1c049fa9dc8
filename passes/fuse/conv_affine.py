"""Fold a factor or a shift per channel into the convolution in front of it.

Before::

    x ─ Conv(W, b) ─ Mul(s) ─ Add(t) ─ y

After::

    x ─ Conv(s · W, s · b + t) ─ y

Meets: biases that Paddle writes as an Add of [1, channels, 1, 1], learnable scales and shifts behind convolutions, both
    behind transposed ones too.
Numerics: reassociated. Products are rounded once, into the weights.
Source: the CPU session does so too when it opens a graph (ConvMulFusion, ConvAddFusion of onnxruntime 1.32), but behind
    the point where a graph is quantized.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import constant as array_of
from onnxopt.graph import dims
from onnxopt.graph.filters import per_channel, result_channels, scale_results
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat, Var
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import FLOATS, constant, either
from onnxopt.spec import Array, Reassociated

KINDS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class PerChannel:
    """The constant behind the convolution, one number for each channel."""

    by: Array


class _Behind(Rule):
    """One constant per channel behind a convolution."""

    numerics = Reassociated(rtol=5e-5, atol=5e-6)
    leaves_shared = True  # where the plain result is wanted too, as the hard swish wants it, there is nothing to fold

    def products(self, op: Ops, x: Pat) -> Pat:
        """A convolution of either kind."""
        bias = Var("maybe_bias", optional=True)
        return either(*(getattr(op, kind)(x, constant("weight"), bias, _name="conv") for kind in KINDS))

    def guard(self, match: Match, weight: ir.Value, maybe_bias: ir.Value | None) -> None:
        """Constants, one number per channel of the result or one for all."""
        match.require(weight.dtype in FLOATS, f"the weight is {weight.dtype}", weight)
        match.require(maybe_bias is None or array_of(maybe_bias) is not None, "the bias is computed", maybe_bias)
        shape = dims(weight) or ()
        channels = result_channels(match.named["conv"], shape)
        match.require(channels is not None, "the filters have no known channels", weight)
        by = per_channel(match.array("by"), channels or 0, len(shape))
        match.needs(by is not None, "what comes behind is not one number per channel")
        if by is not None:
            match.note(PerChannel(by))

    def channels(self, match: Match) -> tuple[Array, Array, Array]:
        """Return the weight, the bias, and the constant as [channels], in float64."""
        by, bias = match.noted(PerChannel).by, array_of(match.values.get("maybe_bias"))
        own = np.zeros(len(by)) if bias is None else bias.astype(np.float64)
        return match.array("weight"), own, by

    def conv(self, op: Builder, match: Match, weight: ir.Value, bias: Array) -> ir.Value:
        """The convolution with other weights."""
        node = match.named["conv"]
        attributes = {name: attr.value for name, attr in node.attributes.items()}
        kept = match.array("weight").dtype
        return op.node(node.op_type, [node.inputs[0], weight, op.constant(bias.astype(kept), "bias")], attributes)[0]


@register
class FoldConvAdd(_Behind):
    """Conv(x, W, b) + t  →  Conv(x, W, b + t)."""

    name = "fold-conv-add"

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """A shift behind."""
        yield op.Add(self.products(op, x), constant("by"))

    def rewrite(self, op: Builder, match: Match, weight: ir.Value) -> ir.Value:
        """The weight stays as it is."""
        _, bias, by = self.channels(match)
        return self.conv(op, match, weight, bias + by)


@register
class FoldConvMul(_Behind):
    """s · Conv(x, W, b)  →  Conv(x, s · W, s · b)."""

    name = "fold-conv-mul"

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """A factor behind."""
        yield op.Mul(self.products(op, x), constant("by"))

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        """New weights."""
        weight, bias, by = self.channels(match)
        scaled = scale_results(match.named["conv"], weight.astype(np.float64), by).astype(weight.dtype)
        return self.conv(op, match, op.constant(scaled, "weight"), bias * by)
