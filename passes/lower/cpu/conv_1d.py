"""Run a convolution over one axis as one over two, of which the first is 1 long.

Before::

    x [batch, channels, n] ─ Conv(W [out, channels, k]) ─ y

After::

    x ─ Unsqueeze(2) ─ Conv(W [out, channels, 1, k]) ─ Squeeze(2) ─ y

Meets: speech and sensor models, taggers over characters; chains of them stay in the wider form (merge-squeezes).
Numerics: reassociated. Another kernel sums in another order.
Source: ONNX Runtime's kernels for blocked channels take two axes only (NchwcTransformer of onnxruntime 1.32). 384
    channels to 384, 3 of 3,000, stride 2: 24 ms instead of 39 ms; 256 channels apart, 31 of 200: 0.055 ms instead of
    0.26 ms. Blocks are of 16: 30 channels take 0.064 ms instead of 0.062 ms, 1 channel of 16,000 to 512 takes 1.25 ms
    instead of 0.71 ms (one thread, AVX-512 EPYC, 2026-11-30).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import dims, opset
from onnxopt.graph.filters import groups_of
from onnxopt.graph.linears import name_after
from onnxopt.rewrite import AS_IS, Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant
from onnxopt.spec import Reassociated

BLOCK = 16  # channels side by side with AVX-512; with AVX2 there are 8
SPARE = 2  # the axis in front of the one that is convolved
AXES_ARE_AN_INPUT = 13
PER_AXIS = ("kernel_shape", "strides", "dilations")  # each gets a 1 for the spare axis, and pads get two zeros


@dataclass(frozen=True)
class Channels:
    """Whether each channel is convolved apart."""

    apart: bool


@register
class LowerConv1d(Rule):
    """Conv(x, W) over one axis  →  Squeeze(Conv(Unsqueeze(x), Unsqueeze(W)))."""

    name = "lower-conv-1d"
    numerics = Reassociated(rtol=5e-5, atol=5e-6)
    enables = ("compute-before-squeeze", "merge-squeezes")
    forms = ("two axes", AS_IS)

    def patterns(self, op: Ops, x: Pat, maybe_bias: Pat) -> Iterator[Pat]:
        """A convolution with constant filters."""
        yield op.Conv(x, constant("weight"), maybe_bias)

    def guard(self, match: Match, x: ir.Value, weight: ir.Value) -> None:
        """One axis, and channels that fill blocks."""
        shape = dims(weight) or ()
        match.needs(len(shape) == SPARE + 1, "it does not go over one axis")
        match.require(x.dtype == ir.DataType.FLOAT, f"x is {x.dtype}; the CPU kernel takes float32", x)
        match.require(len(weight.uses()) == 1, "the weight is shared", weight)
        results, inputs, _ = (int(size or 0) for size in shape)
        groups = groups_of(match.root)
        apart = groups > 1 and inputs == 1 and results == groups
        filled = results % BLOCK == 0 if apart else results // groups % BLOCK == 0 and inputs % BLOCK == 0
        match.needs(filled, f"the channels do not fill blocks of {BLOCK}")
        match.note(Channels(apart))

    def class_of(self, match: Match) -> str:
        """Filters of one channel each gain more than others."""
        return "each channel apart" if match.noted(Channels).apart else "channels together"

    def rewrite(
        self, op: Builder, match: Match, x: ir.Value, weight: ir.Value, maybe_bias: ir.Value | None
    ) -> ir.Value:
        """The spare axis in front, and out again."""
        filters = match.array("weight")
        wider = op.constant(filters.reshape(*filters.shape[:SPARE], 1, filters.shape[SPARE]), "weight")
        name_after(wider, [weight])
        attributes = {name: attr.value for name, attr in match.root.attributes.items()}
        for name in PER_AXIS:
            if name in attributes:
                attributes[name] = [1, *attributes[name]]
        if "pads" in attributes:
            before, after = attributes["pads"]
            attributes["pads"] = [0, before, 0, after]
        if opset(match.model) < AXES_ARE_AN_INPUT:
            made = op.node("Conv", [op.Unsqueeze(x, axes=[SPARE]), wider, maybe_bias], attributes)[0]
            return op.Squeeze(made, axes=[SPARE])
        axis = op.ints([SPARE], "axis")
        made = op.node("Conv", [op.Unsqueeze(x, axis), wider, maybe_bias], attributes)[0]
        return op.Squeeze(made, axis)
