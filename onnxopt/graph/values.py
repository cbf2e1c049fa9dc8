"""Values of a graph: the constants among them, and their dimensions."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.graph.nodes import SMALL_CONSTANT_BYTES
from onnxopt.spec import Array

Dim = int | str | None


def constant(value: ir.Value | None) -> Array | None:
    """Return the array of a value that can never change, else None. An initializer that is also an input can change."""
    if value is None or value.is_graph_input():
        return None
    tensor = value.const_value
    if tensor is None:
        producer = value.producer()
        if producer is None or producer.op_type != "Constant":
            return None
        tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Tell whether a value is a constant, without reading its data."""
    if value is None or value.is_graph_input():
        return False
    producer = value.producer()
    return value.const_value is not None or (producer is not None and producer.op_type == "Constant")


def number(value: ir.Value | None) -> float | None:
    """Return the value of a constant with exactly one element, else None."""
    if value is None or not is_constant(value):
        return None
    size = value.const_value.size if value.const_value is not None else None
    if size is not None and size != 1:
        return None
    array = constant(value)
    if array is None or array.size != 1 or array.dtype.kind not in "fiub":
        return None
    return float(array.reshape(-1)[0])


def integers(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the elements of a small integer constant, else None."""
    array = constant(value)
    if array is None or array.dtype.kind not in "iu" or array.size > SMALL_CONSTANT_BYTES:
        return None
    return tuple(int(element) for element in array.reshape(-1))


def dims(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """Return the dimensions: a size, the expression of a symbolic one, None for an unknown one; None without a rank."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def rank(value: ir.Value | None) -> int | None:
    """Return the number of dimensions, None when it is not known."""
    return None if value is None or value.shape is None else len(value.shape)


def known_dims(value: ir.Value | None) -> tuple[int | str, ...] | None:
    """Return the dimensions when every one is a size or a name, else None."""
    found = dims(value)
    if found is None or any(dim is None for dim in found):
        return None
    return tuple(dim for dim in found if dim is not None)


def tensor_shape(tensor: ir.TensorProtocol) -> ir.Shape:
    """Return the shape of a tensor as a new object."""
    return ir.Shape([int(dim) for dim in tensor.shape])  # type: ignore[arg-type]  # a tensor has no symbolic dimension


def constant_value(tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """Make a value that holds a tensor; it is not yet an initializer of a graph."""
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor_shape(tensor), const_value=tensor)
