"""Run a convolution between QuantizeLinear and DequantizeLinear as one integer kernel, bias and Relu inside.

Before::

    q ─ DQ(s, z) ─ Conv(DQ(Ŵ, t), DQ(b̂, s · t)) ─ Relu ─ QuantizeLinear(s', z') ─ y

After::

    q ─ QLinearConv(s, z, Ŵ, t, s', z', b̂) ─ y

Meets: the result of quantize-conv; graphs of other quantizers in Q/DQ form, whose grids make their activations too.
Numerics: lossy. Integer sums are exact; a result between two steps of the grid may fall to the other side, so 40 dB of
    signal to noise are asked for among the codes.
Source: ONNX operator QLinearConv-10. Relu is what a grid that ends at 0 does; Clip what one that ends at its bound
    does. The session lays the result out with channels last (NhwcTransformer of onnxruntime 1.32).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxopt.graph import attribute, constant, dims, rank
from onnxopt.graph.convs import clipped
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat, Var
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant as any_constant
from onnxopt.spec import SQNR, Lossy

CODES = (ir.DataType.UINT8, ir.DataType.INT8)


@register
class LowerQuantizedConv(Rule):
    """Q(act(DQ(q) ⊛ DQ(Ŵ) + DQ(b̂)))  →  QLinearConv(q, Ŵ, b̂)."""

    name = "lower-quantized-conv"
    min_opset = 10
    numerics = Lossy(SQNR, 40.0)
    keeps_shared = True  # others may read the dequantized input too; it costs nothing that they do

    def patterns(self, op: Ops, q: Pat) -> Iterator[Pat]:
        """With a bias or without, with an activation or without."""
        x = op.DequantizeLinear(q, Var("scale"), Var("zero", optional=True), _shared=True)
        weight = op.DequantizeLinear(
            any_constant("codes"), any_constant("scales"), Var("zeros", optional=True), _name="weight"
        )
        bias = op.DequantizeLinear(any_constant("bias"), any_constant("bias_scale"), Var("bias_zero", optional=True))
        for conv in (op.Conv(x, weight, bias, _name="conv"), op.Conv(x, weight, None, _name="conv")):
            for result in (op.Relu(conv, _name="act"), op.Clip(conv, _rest=True, _name="act"), conv):
                yield op.QuantizeLinear(result, Var("result_scale"), Var("result_zero", optional=True))

    def guard(self, match: Match, q: ir.Value, codes: ir.Value, scales: ir.Value) -> None:
        """Grids per tensor for both ends, per channel for the weight; a bias on the grid of the products."""
        ends = [match.values.get(name) for name in ("scale", "result_scale")]
        match.require(all(rank(end) == 0 or dims(end) == (1,) for end in ends), "a grid per channel", match.root)
        kinds = {value.dtype for value in (q, match.root.outputs[0])}
        match.require(
            len(kinds) == 1 and kinds <= set(CODES) and codes.dtype == ir.DataType.INT8, "no kernel for the types", q
        )
        size, out = dims(scales) or (), (dims(codes) or (None,))[0]
        weight = match.named["weight"]
        match.require(
            size in ((), (1,)) or (size == (out,) and attribute(weight, "axis") == 0), "scales lie across", scales
        )
        match.require(_zero(match, "zeros") and _zero(match, "bias_zero"), "a weight with zero points", codes)
        bias = match.values.get("bias")
        if bias is not None:
            given, own, steps = (constant(match.values.get(name)) for name in ("bias_scale", "scale", "scales"))
            fits = given is not None and own is not None and steps is not None
            match.require(
                bias.dtype == ir.DataType.INT32 and dims(bias) == (out,), "the bias is not int32 per channel", bias
            )
            match.require(
                fits and np.allclose(np.asarray(given), np.asarray(own) * np.asarray(steps), rtol=1e-5, atol=0.0),
                "the bias is on another grid than the products",
                bias,
            )
        _require_grid_acts(match)

    def rewrite(self, op: Builder, match: Match, q: ir.Value, codes: ir.Value, scales: ir.Value) -> ir.Value:
        """The kernel takes the grids as they are."""
        values, conv = match.values, match.named["conv"]
        zeros = op.constant(np.zeros(dims(scales) or (), np.int8), "weight_zero")  # type: ignore[arg-type]  # a constant's
        inputs = [
            *(q, values["scale"], zero_of(op, match, "zero", q)),
            *(codes, scales, zeros),
            *(values["result_scale"], zero_of(op, match, "result_zero", q), values.get("bias")),
        ]
        attributes = {name: attr.value for name, attr in conv.attributes.items()}
        return op.node("QLinearConv", inputs, attributes)[0]


def zero_of(op: Builder, match: Match, name: str, like: ir.Value) -> ir.Value:
    """Return a zero point, which Q and DQ may leave out and the kernels may not."""
    value = match.values.get(name)
    kind = np.int8 if like.dtype == ir.DataType.INT8 else np.uint8
    return value if value is not None else op.constant(np.array(0, kind), name)


def _zero(match: Match, name: str) -> bool:
    value = match.values.get(name)
    found = constant(value)
    return value is None or (found is not None and not found.any())


def _require_grid_acts(match: Match) -> None:
    """The ends of the grid of the result must do what the activation does."""
    act = match.named.get("act")
    if act is None:
        return
    bounds = clipped(act)
    scale, zero = constant(match.values.get("result_scale")), constant(match.values.get("result_zero"))
    unsigned = match.root.outputs[0].dtype == ir.DataType.UINT8
    least, most = (0, 255) if unsigned else (-128, 127)
    match.require(bounds is not None, "it is clipped to something else than from 0", act)
    point = int(zero.reshape(-1)[0]) if zero is not None else 0
    match.require(point == least, "the grid of the result goes below 0, which the activation does not", act)
    reach = float(scale.reshape(-1)[0]) * (most - point) if scale is not None else float("inf")
    match.require(
        bounds is not None and reach <= bounds[1] * (1 + 1e-5), f"the grid reaches {reach:g}, beyond its bound", act
    )
