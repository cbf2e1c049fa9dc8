"""Compute once what is computed twice from the same inputs.

Before::

    mask ─┬─ Cast(bool) ─ a
          └─ Cast(bool) ─ b

After::

    mask ─ Cast(bool) ─ a, b

Meets: TorchScript exports, which repeat shape arithmetic in every layer.
Numerics: exact. A graph with an Optional that carries its type is left as it is.
Source: onnx_ir.passes.common.CommonSubexpressionEliminationPass.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Exact

_TYPES = (ir.AttributeType.TYPE_PROTO, ir.AttributeType.TYPE_PROTOS)


@register
class MergeEqualNodes(Pass):
    """f(x), f(x)  →  f(x)."""

    name = "merge-equal-nodes"
    numerics = Exact()

    def run(self, model: ir.Model) -> int:
        """Merge as long as nodes go; returns how many are gone.

        Of equal nodes that are outputs each but one becomes an Identity. Those are equal again, and merging them makes
        a chain of them, of a hundred outputs after a hundred rounds.
        """
        if any(map(_holds_a_type, model.graph.all_nodes())):
            return 0
        before = left = model.graph.num_nodes()
        while CommonSubexpressionEliminationPass()(model).modified and model.graph.num_nodes() < left:
            left = model.graph.num_nodes()
        return before - model.graph.num_nodes()


def _holds_a_type(node: ir.Node) -> bool:
    """Tell whether an attribute is a type, as of Optional; the library's pass cannot hash those and stops."""
    return any(attribute.type in _TYPES for attribute in node.attributes.values())
