"""Put the constant of a commutative operator on the right.

Before::

    Add(bias, x)

After::

    Add(x, bias)

Meets: TorchScript exports write the bias first.
Numerics: exact. IEEE 754 addition and multiplication commute.
Source: IEEE 754-2019.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.graph import all_nodes, is_constant
from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Exact

SWAPPABLE = ("Add", "Mul", "And", "Or", "Xor", "Equal")


@register
class OrderOperands(Pass):
    """f(c, x)  →  f(x, c)."""

    name = "order-operands"
    numerics = Exact()
    enables = ("merge-equal-nodes",)

    def run(self, model: ir.Model) -> int:
        """Swap; returns how many nodes changed."""
        changed = 0
        for node in all_nodes(model):
            if node.op_type not in SWAPPABLE or node.domain not in ("", "ai.onnx") or len(node.inputs) != 2:
                continue
            left, right = node.inputs
            if is_constant(left) and not is_constant(right):
                node.replace_input_with(0, right)
                node.replace_input_with(1, left)
                changed += 1
        return changed
