"""Write a vector of an elementwise operator as a vector.

Before::

    x [rows, n] ─ Add(c [1, n]) ─ y

After::

    x ─ Add(c [n]) ─ y

Meets: biases [1, n] of scikit-learn's converters, [1, 1, n] of Keras, JAX and TensorFlow, behind products and in norms.
Numerics: exact. The same numbers are broadcast.
Source: ONNX multidirectional broadcasting: missing axes count as leading axes of 1; so it is for C of Gemm-13.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import dims, rank
from onnxopt.graph.linears import name_after
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Const, Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Exact

ORDERED = ("Sub", "Div")  # a constant may stand on either side; the others commute


@register
class DropLeadingAxes(Rule):
    """f(x, c [1, …, 1, n])  →  f(x, c [n]), where x has as many axes."""

    name = "drop-leading-axes"
    numerics = Exact()
    enables = ("fuse-linear", "lower-linear", "fuse-layer-norm")

    def patterns(self, op: Ops, x: Pat, a: Pat, b: Pat) -> Iterator[Pat]:
        """Sums and products, differences and quotients, and the bias of a Gemm."""
        wide = Const(_has_leading_axes, "a constant [1, …, 1, n]", "wide")
        yield op.Add(x, wide)
        yield op.Mul(x, wide)
        for kind in ORDERED:
            make = getattr(op, kind)
            yield make(x, wide)
            yield make(wide, x)
        yield op.Gemm(a, b, wide)

    def guard(self, match: Match, x: ir.Value | None, wide: ir.Value) -> None:
        """Without its own axes of 1 the constant must give the result no fewer axes than with them."""
        if x is None:  # Gemm: the result is a matrix whatever C is
            return
        axes = rank(x)
        match.require(axes is not None, "the rank of the other operand is not known", x)
        match.needs((axes or 0) >= (rank(wide) or 0), "the constant gives the result its axes")

    def rewrite(self, op: Builder, match: Match, wide: ir.Value) -> ir.Value:
        """The same operator on the vector."""
        vector = op.constant(match.array("wide").reshape(-1), "vector")
        name_after(vector, [wide])
        inputs = [vector if value is wide else value for value in match.root.inputs]
        attributes = {name: attr.value for name, attr in match.root.attributes.items()}
        return op.node(match.root.op_type, inputs, attributes)[0]


def _has_leading_axes(value: ir.Value) -> bool:
    """Tell whether a constant is a vector behind axes of 1."""
    shape = dims(value) or ()
    return len(shape) > 1 and all(size == 1 for size in shape[:-1])
