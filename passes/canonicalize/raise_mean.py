"""Write a sum that is divided by how many it sums as a mean.

Before::

    x [batch, 512] ─ ReduceSum ─ Mul(1/512) ─ y

After::

    x ─ ReduceMean ─ y

Meets: JAX, which has no mean of its own; the statistics of flax's norms.
Numerics: reassociated. A product with the inverse rounds once more than a quotient.
Source: ONNX operators ReduceSum-13 and ReduceMean-18, which takes its axes as an input since then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import attribute, dims, opset
from onnxopt.graph.dimensions import reduced_axes
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import SCALAR_RTOL, Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import FLOATS, reduced, scalar
from onnxopt.spec import Reassociated

AXES_ARE_AN_INPUT = 18


@dataclass(frozen=True)
class Summed:
    """The axes that are summed, from 0."""

    axes: tuple[int, ...]


@register
class RaiseMean(Rule):
    """Σ x / n  →  ReduceMean(x), where n numbers are summed."""

    name = "raise-mean"
    numerics = Reassociated(rtol=1e-6, atol=1e-7)
    enables = ("fuse-layer-norm", "fuse-rms-norm")

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Times the inverse, or divided by the count."""
        total = reduced("ReduceSum", x, "sum")
        yield op.Mul(total, scalar(name="inverse"))
        yield op.Div(total, scalar(name="count"))

    def guard(self, match: Match, x: ir.Value) -> None:
        """The sizes of the axes are known, and multiply to the count, which is not 0."""
        match.require(x.dtype in FLOATS, f"x is {x.dtype}; a mean of integers is rounded", x)
        shape = dims(x) or ()
        axes = reduced_axes(match.named["sum"], len(shape))
        match.needs(axes, "the axes are not known")
        sizes = [shape[axis] for axis in axes or ()]
        match.needs(all(isinstance(size, int) for size in sizes), "how many are summed is not known")
        number = match.number("count") if "count" in match.values else 1 / (match.number("inverse") or math.inf)
        count = math.prod(int(size or 0) for size in sizes)
        match.needs(count, "nothing is summed: 0/0 is no number, whatever the mean of nothing is")
        match.needs(math.isclose(number, count, rel_tol=SCALAR_RTOL), "the sum is divided by another number")
        divisor = match.values["count" if "count" in match.values else "inverse"]
        left = len(shape) if attribute(match.named["sum"], "keepdims") else len(shape) - len(axes or ())
        match.needs(len(dims(divisor) or ()) <= left, "the divisor adds an axis")
        match.note(Summed(axes or ()))

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """One operator."""
        axes, keepdims = match.noted(Summed).axes, attribute(match.named["sum"], "keepdims")
        if opset(match.model) < AXES_ARE_AN_INPUT:
            return op.ReduceMean(x, axes=axes, keepdims=keepdims)
        return op.ReduceMean(x, op.ints(axes, "axes"), keepdims=keepdims)
