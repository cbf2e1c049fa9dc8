"""Set the smallest weights to zero: a share of each, or two in each four along the inputs, as sparse kernels want them.

The tensors keep their shapes. TensorRT has kernels for 2:4; ONNX Runtime's CPU and CUDA providers multiply zeros like
any other number.

Source: magnitude: Han et al. 2015, arXiv:1506.02626; two in four: Mishra et al. 2021, arXiv:2104.08378.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.graph import attribute, constant, constant_value, is_constant, is_op
from onnxopt.graph.weight_files import tensor_of
from onnxopt.prune.checkpoint.network import Pruned
from onnxopt.spec import Array

NO_GAIN = (
    "zeros in weights make nothing faster or smaller for ONNX Runtime's CPU and CUDA providers; TensorRT has kernels "
    "for 2:4 zeros (build with sparsity enabled)"
)
LEAST_SIZE = 1024  # entries; smaller weights have nothing to gain


def set_zeros(model: ir.Model, zeros: str) -> list[Pruned]:
    """Set weights of products and convolutions to zero.

    Args:
        model: changed in place; shapes stay.
        zeros: `2:4` or a share such as `50%`.

    Returns:
        How many entries of each weight there are and how many are left.
    """
    report, made = [], dict[ir.Value, ir.Value]()
    for node in model.graph:
        if not is_op(node, "MatMul", "Gemm", "Conv") or len(node.inputs) < 2:
            continue
        value = node.inputs[1]
        if value is None or not is_constant(value):
            continue
        if value in made:
            node.replace_input_with(1, made[value])
            continue
        array = constant(value)
        if array is None or array.ndim < 2 or array.size < LEAST_SIZE or array.dtype.kind != "f":
            continue
        axis = 1 if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB")) else 0
        fresh = two_of_four(array, axis) if zeros == "2:4" else smallest_gone(array, float(zeros[:-1]) / 100)
        if fresh is None:
            continue
        name = f"{value.name}/zeros"
        made[value] = constant_value(tensor_of(fresh, name), name)
        model.graph.register_initializer(made[value])
        node.replace_input_with(1, made[value])
        report.append(Pruned("zeros", value.name or "", array.size, int(np.count_nonzero(fresh))))
    return report


def smallest_gone(array: Array, share: float) -> Array:
    """Return the array with the smallest share of its entries set to zero."""
    order = np.argsort(np.abs(array), axis=None, kind="stable")[: round(share * array.size)]
    fresh = np.array(array)
    fresh.reshape(-1)[order] = 0
    return fresh


def two_of_four(array: Array, axis: int) -> Array | None:
    """Set the two smallest of each four along an axis to zero; None when four do not divide it."""
    if array.shape[axis] % 4:
        return None
    moved = np.moveaxis(np.array(array), axis, -1)
    fours = np.ascontiguousarray(moved).reshape(*moved.shape[:-1], -1, 4)
    order = np.argsort(np.abs(fours), axis=-1, kind="stable")[..., :2]
    np.put_along_axis(fours, order, 0, axis=-1)
    return np.ascontiguousarray(np.moveaxis(fours.reshape(moved.shape), -1, axis))
