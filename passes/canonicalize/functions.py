"""Inline model-local functions, so that every pass sees operators.

Before::

    x ─ my.domain::Block ─ y          (Block = MatMul, Add)

After::

    x ─ MatMul ─ Add ─ y

Meets: torch.onnx dynamo before its own optimizer, onnxscript functions, hand-made models.
Numerics: exact.
Source: ONNX IR specification, "Functions".
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Exact


@register
class InlineFunctions(Pass):
    """f(x)  →  the body of f."""

    name = "inline-functions"
    numerics = Exact()

    def run(self, model: ir.Model) -> int:
        """Inline all calls; returns the number of functions that are gone."""
        count = len(model.functions)
        if count:
            InlinePass()(model)
        return count - len(model.functions)
