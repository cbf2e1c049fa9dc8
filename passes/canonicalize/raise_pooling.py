"""Write the mean over all positions of an image as the pooling that it is.

Before::

    x [batch, channels, height, width] ─ ReduceMean(axes 2, 3; kept) ─ y

After::

    x ─ GlobalAveragePool ─ y

Meets: adaptive pooling to one position, as PyTorch exports it since opset 18.
Numerics: reassociated. The sum runs in another order.
Source: ONNX operator GlobalAveragePool-1. Kernels that keep channels in blocks or last, in float and in integers, have
    it and not the mean.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import attribute, integers, rank
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat, Var
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import FLOATS
from onnxopt.spec import Reassociated


@register
class RaiseGlobalAveragePool(Rule):
    """ReduceMean(x, axes of all positions)  →  GlobalAveragePool(x)."""

    name = "raise-global-average-pool"
    numerics = Reassociated(rtol=1e-5, atol=1e-6)
    enables = ("quantize-between",)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """The axes are an attribute before opset 18 and an input since."""
        yield op.ReduceMean(x, Var("axes", optional=True), keepdims=1)

    def guard(self, match: Match, x: ir.Value, axes: ir.Value | None) -> None:
        """An image, and every axis behind the channels."""
        size = rank(x) or 0
        match.needs(x.dtype in FLOATS and size > 3, "no image")
        given = integers(axes) if axes is not None else attribute(match.root, "axes")
        match.needs(given is not None, "the axes are computed, or all")
        match.needs({axis % size for axis in given or ()} == set(range(2, size)), "not the mean over all positions")

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        """One operator."""
        return op.GlobalAveragePool(x)
