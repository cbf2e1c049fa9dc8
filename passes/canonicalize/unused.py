"""Remove nodes and initializers that no output needs.

Before::

    x ─┬─ Relu ─ y
       └─ Shape ─ (nobody)        weight_left_over

After::

    x ─ Relu ─ y

Meets: every exporter; the card's initializer pruning. The bytes that go are in the ledger.
Numerics: exact.
Source: onnx_ir.passes.common.RemoveUnusedNodesPass.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from onnxopt.graph import all_nodes
from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Exact


@register
class RemoveUnused(Pass):
    """What no output depends on goes; inputs stay, they are the user's contract."""

    name = "remove-unused"
    numerics = Exact()

    def run(self, model: ir.Model) -> int:
        """Remove; returns how many nodes and initializers are gone."""
        before = _count(model)
        RemoveUnusedNodesPass()(model)
        RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]  # the library's constructor
        RemoveUnusedOpsetsPass()(model)
        return before - _count(model)


def _count(model: ir.Model) -> int:
    return sum(1 for _ in all_nodes(model)) + sum(len(graph.initializers) for graph in model.graphs())
