"""Compute at build time what does not depend on the inputs, within a size budget.

Before::

    weight ─ Transpose ─┐
    x ──────────────────┴─ MatMul ─ y

After::

    x ─ MatMul(weightᵀ) ─ y

Meets: every exporter.
Numerics: exact up to the runtime's own rounding of the folded node.
Source: onnxscript.optimizer.fold_constants. The budget keeps Expand, Tile and ConstantOfShape from growing the file
    (onnxsim issue 291): a result may be as large as the largest constant it replaces, or one mebibyte.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from onnxopt.graph import all_nodes, is_constant, is_op
from onnxopt.rewrite import Pass, Reassociated, register

FREE_BYTES = 2**20
LARGEST_BYTES = 2**31
NEVER = (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "DequantizeLinear",
)


@register
class FoldConstants(Pass):
    """f(constants)  →  constant."""

    name = "fold-constants"
    numerics = Reassociated(rtol=1e-6, atol=1e-6)
    enables = ("remove-unused",)

    def run(self, model: ir.Model) -> int:
        """Fold; returns how many nodes are gone, those that became another node (an empty Cast, say) included."""
        before = set(all_nodes(model))
        fold_constants(model, input_size_limit=LARGEST_BYTES, output_size_limit=LARGEST_BYTES, should_fold=_should_fold)
        _store_in_rows(model)
        return len(before - set(all_nodes(model)))


def _store_in_rows(model: ir.Model) -> None:
    """Copy folded results that are strided views, such as a transposed weight, into row-major order."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.Tensor) and not tensor.numpy().flags.c_contiguous:
            value.const_value = ir.Tensor(np.ascontiguousarray(tensor.numpy()), dtype=tensor.dtype, name=value.name)


def _should_fold(node: ir.Node) -> bool | None:
    """Tell whether a node may be folded; None leaves it to the library."""
    if node.op_type in NEVER or node.domain not in ("", "ai.onnx"):
        return False
    inputs = [value for value in node.inputs if value is not None]
    if not inputs or not all(is_constant(value) for value in inputs):
        return None
    used = max((value.const_value.nbytes for value in inputs if value.const_value is not None), default=0)
    if is_op(node, "Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze"):
        return used <= FREE_BYTES or all(len(value.uses()) == 1 for value in inputs if _large(value))
    if is_op(node, "Expand", "Tile", "ConstantOfShape", "Range", "Gather", "Pad", "Resize", "OneHot"):
        return _result_bytes(node) <= max(FREE_BYTES, used)
    return None


def _large(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.nbytes > FREE_BYTES


def _result_bytes(node: ir.Node) -> int:
    value = node.outputs[0]
    if value.shape is None or value.dtype is None or not all(isinstance(dim, int) for dim in value.shape):
        return LARGEST_BYTES
    count = 1
    for dim in value.shape:
        count *= int(dim)  # type: ignore[arg-type]  # checked to be integers above
    return int(count * value.dtype.itemsize)
