"""Round a tensor to its grid once, however many operators around it ask for that.

Before::

    q ─ DequantizeLinear(s, z) ─ QuantizeLinear(s, z) ─ y

After::

    q ─ y

Meets: tensors between two quantized operators, each of which puts what it reads and what it gives on a grid.
Numerics: exact: what is on a grid is rounded to itself.
Source: ONNX QuantizeLinear-13: round(s · (q − z) / s) + z is q, since the rounding errors of float32 are far below 1/2.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxopt.graph import constant
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat, Var
from onnxopt.rewrite.registry import register
from onnxopt.spec import Exact


@register
class DropRequantize(Rule):
    """Q(DQ(q; s, z); s, z)  →  q."""

    name = "drop-requantize"
    numerics = Exact()
    keeps_shared = True  # others may read the tensor in float

    def patterns(self, op: Ops, q: Pat) -> Iterator[Pat]:
        """Twice the same grid."""
        first = op.DequantizeLinear(q, Var("scale"), Var("zero", optional=True), _shared=True)
        yield op.QuantizeLinear(first, Var("scale_again"), Var("zero_again", optional=True))

    def guard(self, match: Match, q: ir.Value) -> None:
        """One scale, one zero point, one type."""
        match.needs(_same(match, "scale"), "another scale")
        match.needs(_same(match, "zero"), "another zero point")
        match.needs(q.dtype == match.root.outputs[0].dtype, "another type")

    def rewrite(self, op: Builder, q: ir.Value) -> ir.Value:
        """The integers as they are."""
        del op
        return q


def _same(match: Match, name: str) -> bool:
    one, other = match.values.get(name), match.values.get(f"{name}_again")
    first, second = constant(one), constant(other)
    if one is None and other is None:
        return True
    return first is not None and second is not None and first.size == 1 and np.array_equal(first, second)
