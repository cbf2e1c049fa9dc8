"""Run a dynamically quantized linear layer as one kernel.

Before::

    x ─ DynamicQuantizeLinear ─ MatMulInteger(Ŵ) ─ Cast ─ Mul(s · t) ─ Add(b) ─ y

After::

    x ─ com.microsoft.DynamicQuantizeMatMul(Ŵ, t, b) ─ y

Meets: the result of quantize-dynamic; graphs of onnxruntime's quantize_dynamic.
Numerics: reassociated.
Source: ONNX Runtime contrib operator DynamicQuantizeMatMul. The session fuses it only where one layer reads the
    quantized input (DynamicQuantizeMatMulFusion).
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import constant, dims
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant as any_constant
from onnxopt.spec import Reassociated


@register
class LowerDynamicLinear(Rule):
    """s · t · (Q(X) @ Ŵ) + b  →  com.microsoft.DynamicQuantizeMatMul(X, Ŵ, t, b)."""

    name = "lower-dynamic-linear"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    keeps_shared = True  # the quantized input may have other readers; each kernel makes its own

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """With and without a bias."""
        integers, scale, zero = (op.DynamicQuantizeLinear(x, _output=index, _shared=True) for index in range(3))
        sums = op.Cast(op.MatMulInteger(integers, any_constant("codes"), zero))
        product = op.Mul(sums, op.Mul(scale, any_constant("scales")))
        yield op.Add(product, any_constant("bias"))
        yield product

    def guard(self, match: Match, codes: ir.Value, scales: ir.Value) -> None:
        """A matrix with one scale for all or one per column."""
        shape = dims(codes) or ()
        match.require(len(shape) == 2, "the weight is not a matrix", codes)
        match.require((dims(scales) or ()) in ((), (1,), shape[1:]), "scales lie along the rows", scales)
        bias = match.values.get("bias")
        match.needs(bias is None or dims(bias) == shape[1:], "what is added is no bias")
        users = [use.node for use in match.root.outputs[0].uses()]
        if match.root.op_type == "Mul" and len(users) == 1 and users[0].op_type == "Add":
            other = next((value for value in users[0].inputs if value is not match.root.outputs[0]), None)
            match.needs(not (constant(other) is not None and dims(other) == shape[1:]), "the bias belongs to the layer")

    def rewrite(self, op: Builder, match: Match, x: ir.Value, codes: ir.Value, scales: ir.Value) -> ir.Value:
        """Without a zero point of the weight, which is 0."""
        return op.contrib("DynamicQuantizeMatMul", x, codes, scales, None, match.values.get("bias"))
