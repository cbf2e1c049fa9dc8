"""Compute once what is computed twice from the same inputs.

Before::

    mask ─┬─ Cast(bool) ─ a
          └─ Cast(bool) ─ b

After::

    mask ─ Cast(bool) ─ a, b

Meets: TorchScript exports, which repeat shape arithmetic in every layer.
Numerics: exact.
Source: onnx_ir.passes.common.CommonSubexpressionEliminationPass.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass

from onnxopt.rewrite import Exact, Pass, register


@register
class MergeEqualNodes(Pass):
    """f(x), f(x)  →  f(x)."""

    name = "merge-equal-nodes"
    numerics = Exact()

    def run(self, model: ir.Model) -> int:
        """Merge until nothing is equal; returns how many nodes are gone."""
        before = model.graph.num_nodes()
        while CommonSubexpressionEliminationPass()(model).modified:
            pass
        return before - model.graph.num_nodes()
