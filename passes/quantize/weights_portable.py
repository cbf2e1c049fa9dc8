"""Store the weights of linear layers in 4 or 8 bits, in blocks, with standard operators only.

Before::

    x ─ MatMul(W) ─ Add(b) ─ y

After::

    DequantizeLinear(codes, scales, zero points; blocks) ─┐
    x ────────────────────────────────────────────────── MatMul ─ Add(b) ─ y

Meets: every linear layer that the plan names, for targets that know ai.onnx only.
Numerics: lossy, by the weights alone.
Source: ONNX operator DequantizeLinear-21 (blocked along an axis; int4 and uint4). Runtimes make one kernel out of both
    nodes (ONNX Runtime: DQMatMulNBitsFusion) or dequantize once when they load.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxopt.graph.linears import name_after
from onnxopt.passes.quantize.weights import FLOOR_4_BITS, FLOOR_8_BITS, Codes, InBlocks
from onnxopt.passes.words.planned import PlannedLayer
from onnxopt.rewrite import Builder, Match
from onnxopt.rewrite.registry import register
from onnxopt.spec import Array, Lossy

_SIGNED = {4: ml_dtypes.int4, 8: np.int8}
_UNSIGNED = {4: ml_dtypes.uint4, 8: np.uint8}


class _Standard(InBlocks):
    """X @ W + b  →  X @ DequantizeLinear(codes, scales, zero points) + b."""

    min_opset = 21

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """Symmetric codes are signed, so that they need no zero point."""
        linear, blocked = match.noted(PlannedLayer).linear, match.noted(Codes).blocked
        stored, points = blocked.codes, blocked.zero_points
        if points is None:
            middle = 1 << (blocked.bits - 1)
            codes = (stored.astype(np.int16) - middle).astype(np.int8).astype(_SIGNED[blocked.bits])
        else:
            codes = stored.astype(_UNSIGNED[blocked.bits])
        weight = op.constant(codes.T, "codes")
        name_after(weight, [linear.weight])
        restored = op.DequantizeLinear(
            weight,
            op.constant(blocked.scales.T, "scales"),
            None if points is None else op.constant(_turned(points, blocked.bits), "zero_points"),
            axis=0,
            block_size=blocked.block_size,
        )
        product, bias = op.MatMul(x, restored), self.bias(op, match)
        return self.with_rest(op, match, product if bias is None else op.Add(product, bias))


def _turned(points: Array, bits: int) -> Array:
    return points.T.astype(_UNSIGNED[bits])


@register
class QuantizeWeights4Portable(_Standard):
    """X @ W + b  →  X @ DequantizeLinear(codes, scales, zero points) + b, in 4 bits."""

    name = "quantize-weights-4-portable"
    numerics = Lossy("sqnr_db", FLOOR_4_BITS)
    kind = "int4-weights"


@register
class QuantizeWeights8Portable(_Standard):
    """X @ W + b  →  X @ DequantizeLinear(codes, scales, zero points) + b, in 8 bits."""

    name = "quantize-weights-8-portable"
    numerics = Lossy("sqnr_db", FLOOR_8_BITS)
    kind = "int8-weights"
