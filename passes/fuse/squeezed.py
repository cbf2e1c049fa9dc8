"""Compute behind a convolution before its spare axis is squeezed away.

Before::

    x ─ Conv ─ Squeeze ─ Add(b [1, channels, 1]) ─ Relu ─ y

After::

    x ─ Conv ─ Add(b [1, channels, 1, 1]) ─ Relu ─ Squeeze ─ y

Meets: one-dimensional convolutions as tf2onnx writes them: Unsqueeze, a Conv of two axes, Squeeze, and the bias and the
    activation behind it, where neither a pass nor the session finds them.
Numerics: reassociated. The same numbers are computed; a BatchNormalization may vectorize otherwise.
Source: [64, 21, 32] under 200 filters of 4: 0.51 ms where the order before takes 0.68 ms, and a Conv of one axis with
    its bias 0.74 ms, since ONNX Runtime's blocked kernels take two axes (one thread, onnxruntime 1.32.0, AVX-512 EPYC,
    2026-11-30).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import dims, is_constant, is_op, rank
from onnxopt.graph.dimensions import named_axes
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant, either, scalar
from onnxopt.spec import Reassociated

PRODUCTS = ("Conv", "ConvTranspose")
WITH_A_CONSTANT = ("Add", "Mul", "Sub", "Div")
ALONE = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid")  # what the session fuses into a Conv, and Clip
NORMALIZATION = "BatchNormalization"


@dataclass(frozen=True)
class Unsqueezed:
    """The shape of the constant with the axes of 1 that were squeezed."""

    shape: tuple[int, ...]


@register
class ComputeBeforeSqueeze(Rule):
    """f(Squeeze(Conv(x)))  →  Squeeze(f(Conv(x)))."""

    name = "compute-before-squeeze"
    numerics = Reassociated(rtol=1e-6, atol=1e-7)
    enables = ("fold-conv-mul", "fold-conv-add", "fold-batch-norm")

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """A constant, an activation, or a normalization behind."""
        squeezed = either(op.Squeeze(x, constant("axes"), _name="squeeze"), op.Squeeze(x, _name="squeeze"))
        for kind in WITH_A_CONSTANT:
            yield getattr(op, kind)(squeezed, constant("by"))
        for kind in ALONE:
            yield getattr(op, kind)(squeezed)
        yield op.Clip(squeezed, scalar(), scalar())
        statistics = (constant(name) for name in ("gamma", "beta", "mean", "variance"))
        yield op.BatchNormalization(squeezed, *statistics)

    def guard(self, match: Match, x: ir.Value) -> None:
        """A convolution stands in front, and no axis appears that the squeezed result has not."""
        match.needs(_comes_from_a_product(x), "no convolution stands in front")
        axes, axis_count = named_axes(match.named["squeeze"]), rank(x)
        match.require(axes is not None and axis_count is not None, "the squeezed axes are not known", x)
        gone = sorted(axis % (axis_count or 1) for axis in axes or ())
        if "by" in match.values:
            shape = dims(match.values["by"]) or ()
            match.needs(len(shape) <= (axis_count or 0) - len(gone), "the constant gives the result its axes")
            match.note(Unsqueezed(_spread(match.array("by").shape, axis_count or 0, gone)))
        if match.root.op_type == NORMALIZATION:
            match.needs(not {0, 1} & set(gone), "the channels are on another axis once squeezed")
            match.needs(len(match.root.outputs) == 1, "it computes the statistics of the batch")

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """The same operator on all axes; a constant gets the axes of 1 that were squeezed."""
        node, others = match.root, list(match.root.inputs[1:])
        if "by" in match.values:
            others = [op.constant(match.array("by").reshape(match.noted(Unsqueezed).shape), "by")]
        attributes = {name: attr.value for name, attr in node.attributes.items()}
        done = op.node(node.op_type, [x, *others], attributes)[0]
        squeeze = match.named["squeeze"]
        kept = {name: attr.value for name, attr in squeeze.attributes.items()}
        return op.node("Squeeze", [done, *squeeze.inputs[1:]], kept)[0]


def _comes_from_a_product(value: ir.Value) -> bool:
    """Tell whether a convolution makes a value, perhaps with what this rule has moved before."""
    node = value.producer()
    while node is not None and is_op(node, *WITH_A_CONSTANT, *ALONE, "Clip", NORMALIZATION):
        if not all(is_constant(other) for other in node.inputs[1:]) or node.inputs[0] is None:
            return False
        node = node.inputs[0].producer()
    return is_op(node, *PRODUCTS)


def _spread(shape: tuple[int, ...], axis_count: int, gone: list[int]) -> tuple[int, ...]:
    """Return the shape of a constant that meets the squeezed tensor, for the tensor with all its axes."""
    left = [1] * (axis_count - len(gone) - len(shape)) + list(shape)
    for axis in gone:
        left.insert(axis, 1)
    return tuple(left)
