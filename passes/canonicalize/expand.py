"""Let an elementwise operator broadcast by itself.

Before::

    norm [batch, 1] ─ Expand [batch, 384] ─┐
    x [batch, 384] ────────────────────────┴─ Div ─ y

After::

    x, norm ─ Div ─ y

Meets: torch's expand and expand_as in every exporter.
Numerics: exact.
Source: ONNX multidirectional broadcasting.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import dims, known_dims
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Exact

BROADCASTING = ("Add", "Sub", "Mul", "Div", "And", "Or", "Equal", "Max", "Min")


@register
class RemoveExpand(Rule):
    """f(x, Expand(y))  →  f(x, y), where x has the shape of the result."""

    name = "remove-expand"
    numerics = Exact()
    keeps_shared = True  # other readers keep the Expand

    def patterns(self, op: Ops, x: Pat, y: Pat) -> Iterator[Pat]:
        """The Expand on either side."""
        for op_type in BROADCASTING:
            make = getattr(op, op_type)
            yield make(x, op.Expand(y, _rest=True))
            yield make(op.Expand(y, _rest=True), x, _name="expanded_left")

    def guard(self, match: Match, x: ir.Value, y: ir.Value) -> None:
        """The other operand alone must give the result its shape."""
        shape = known_dims(x)
        match.require(
            shape is not None and shape == dims(match.root.outputs[0]), "the Expand gives the result its shape", y
        )

    def rewrite(self, op: Builder, match: Match, x: ir.Value, y: ir.Value) -> ir.Value:
        """The same operator on the narrow operand."""
        inputs = (y, x) if match.root.inputs[1] is x else (x, y)
        return op.node(match.root.op_type, inputs, {})[0]
