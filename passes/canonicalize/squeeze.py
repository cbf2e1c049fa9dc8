"""Drop axes of 1 that are put in and taken out again.

Before::

    x [batch, 64, 1, 100] ─ Squeeze(2) ─ Unsqueeze(2) ─ y

After::

    x ─ y

Meets: chains of one-dimensional convolutions as tf2onnx writes them, or as lower-conv-1d does.
Numerics: exact.
Source: ONNX operators Squeeze-13 and Unsqueeze-13; an axis that a Squeeze names has the size 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import rank
from onnxopt.graph.dimensions import named_axes
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Exact


@register
class MergeSqueezes(Rule):
    """Unsqueeze(Squeeze(x, a), a)  →  x, and the other way round."""

    name = "merge-squeezes"
    numerics = Exact()
    keeps_shared = True  # the inner one stays for its other readers

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Out and in, in and out."""
        yield op.Unsqueeze(op.Squeeze(x, _rest=True, _name="inner"), _rest=True)
        yield op.Squeeze(op.Unsqueeze(x, _rest=True, _name="inner"), _rest=True)

    def guard(self, match: Match, x: ir.Value) -> None:
        """Both name the same axes of the tensor that has more."""
        y = match.root.outputs[0]
        match.require(not (y.is_graph_output() and x.producer() is None), "an output cannot be an input")
        inner, outer = named_axes(match.named["inner"]), named_axes(match.root)
        match.require(inner is not None and outer is not None, "the axes are not named", match.root)
        axes = rank(x)
        match.require(axes is not None, "the rank is not known", x)
        wide = (axes or 0) + (len(inner or ()) if match.root.op_type == "Squeeze" else 0)
        match.needs(
            {axis % wide for axis in inner or ()} == {axis % wide for axis in outer or ()}, "they name other axes"
        )

    def rewrite(self, op: Builder, x: ir.Value) -> ir.Value:
        """Hand on the input."""
        del op
        return x
