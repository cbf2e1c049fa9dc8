"""Turn Constant nodes into initializers, so that a constant has one spelling.

Before::

    Constant(½) ─┐
    x ───────────┴─ Mul ─ y

After::

    x ─ Mul(½) ─ y

Meets: TorchScript exports, onnxscript.
Numerics: exact.
Source: ONNX operator Constant-23.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveInitializersFromInputsPass

from onnxopt.graph import all_nodes
from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Exact


@register
class LiftConstants(Pass):
    """Constant  →  initializer; initializers that an old exporter also listed as inputs stop being inputs."""

    name = "lift-constants"
    numerics = Exact()
    enables = ("fold-constants",)

    def run(self, model: ir.Model) -> int:
        """Lift every Constant; returns how many nodes and inputs are gone."""
        before = sum(node.op_type == "Constant" for node in all_nodes(model)) + len(model.graph.inputs)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        if (
            model.ir_version < 4
        ):  # before IR 4 every initializer had to be an input; it was never meant to be overridden
            RemoveInitializersFromInputsPass()(model)
        return before - sum(node.op_type == "Constant" for node in all_nodes(model)) - len(model.graph.inputs)
