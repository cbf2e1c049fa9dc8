"""Run a linear layer between QuantizeLinear and DequantizeLinear as one integer kernel with its bias.

Before::

    q ─ DequantizeLinear(s, z) ─ MatMul(DequantizeLinear(Ŵ, t)) ─ Add(b) ─ y

After::

    q ─ com.microsoft.MatMulIntegerToFloat(Ŵ, s, t, z, b) ─ y

Meets: the result of quantize-static; graphs of other quantizers in Q/DQ form with per-column or per-tensor weights.
Numerics: reassociated. Integer sums are exact; the scales are applied once, behind them.
Source: ONNX Runtime contrib operator MatMulIntegerToFloat. The session's own fusion leaves the bias out on three
    axes, and on two it makes a float Gemm that dequantizes the weight in every run (1.31.1).
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.graph import attribute, constant, dims, rank
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat, Var
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant as any_constant
from onnxopt.rewrite.vocabulary import either
from onnxopt.spec import Reassociated


@register
class LowerQuantizedLinear(Rule):
    """DQ(q) @ DQ(Ŵ) + b  →  com.microsoft.MatMulIntegerToFloat(q, Ŵ, s, t, z, b)."""

    name = "lower-quantized-linear"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    keeps_shared = True  # others may read the dequantized input too; it costs nothing that they do

    def patterns(self, op: Ops, q: Pat, scale: Pat) -> Iterator[Pat]:
        """With a bias behind it, inside it, or without one."""
        x = op.DequantizeLinear(q, scale, Var("maybe_zero_point", optional=True), _shared=True)
        weight = either(
            op.DequantizeLinear(any_constant("codes"), any_constant("scales"), any_constant("zeros"), _name="weight"),
            op.DequantizeLinear(any_constant("codes"), any_constant("scales"), _name="weight"),
        )
        product = op.MatMul(x, weight)
        yield op.Add(product, any_constant("bias"))
        yield op.Gemm(x, weight, any_constant("bias"), _name="gemm")
        yield product

    def guard(self, match: Match, q: ir.Value, scale: ir.Value, codes: ir.Value, scales: ir.Value) -> None:
        """Scales along the columns, kernels of the types given."""
        shape = dims(codes) or ()
        match.require(len(shape) == 2, "the weight is not a matrix", codes)
        match.require(q.dtype in (ir.DataType.UINT8, ir.DataType.INT8), f"the input is {q.dtype}", q)
        signed = (q.dtype, codes.dtype)
        known = {(ir.DataType.UINT8, ir.DataType.INT8), (ir.DataType.UINT8, ir.DataType.UINT8)}
        match.require(signed in {*known, (ir.DataType.INT8, ir.DataType.INT8)}, "no kernel for the types", codes)
        match.require(rank(scale) == 0 or dims(scale) == (1,), "the input has a scale per channel", scale)
        size = dims(scales) or ()
        axis = attribute(match.named["weight"], "axis")
        match.require(
            size in ((), (1,)) or (size == shape[1:] and axis in (1, -1)), "scales lie along the rows", scales
        )
        match.require(not attribute(match.named["weight"], "block_size"), "scales are per block", scales)
        bias = match.values.get("bias")
        if bias is not None and match.root.op_type == "Add" and dims(bias) != shape[1:]:
            match.needs(condition=False, reason="what is added is no bias")
        if "gemm" in match.named:
            plain = attribute(match.root, "alpha") == attribute(match.root, "beta") == 1.0
            turned = attribute(match.root, "transA") or attribute(match.root, "transB")
            match.require(plain and not turned and dims(bias) == shape[1:], "the Gemm scales or turns", match.root)
        users = [use.node for use in match.root.outputs[0].uses()]
        if match.root.op_type == "MatMul" and len(users) == 1 and users[0].op_type == "Add":
            other = next((value for value in users[0].inputs if value is not match.root.outputs[0]), None)
            match.needs(not (constant(other) is not None and dims(other) == shape[1:]), "the bias belongs to the layer")

    def rewrite(self, op: Builder, match: Match, q: ir.Value, scale: ir.Value) -> ir.Value:
        """The kernel takes the grids as they are."""
        values = match.values
        inputs = [
            *(q, values["codes"], scale, values["scales"]),
            *(values.get("maybe_zero_point"), values.get("zeros"), values.get("bias")),
        ]
        return op.contrib("MatMulIntegerToFloat", *inputs)
