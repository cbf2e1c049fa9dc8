"""Weights that a file stores in few bits and its graph widens before it uses them.

    codes [in, out] ─ Cast ─ Sub(zero point) ─ Mul(scale) ─ MatMul's second operand, or Gather's first

Exporters' scripts write int8 weights so, and others float16 with the Cast alone. Folding those nodes would store the
weights in float32, four times as large; ONNX Runtime does that when it opens the file, and is as fast. So they stay,
and quantizing takes the codes as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph.linears import ORIGIN_KEY
from onnxopt.graph.nodes import attribute, is_op
from onnxopt.graph.values import constant, constant_value, is_constant
from onnxopt.graph.weight_files import tensor_of
from onnxopt.qmath.precision import Blocked
from onnxopt.spec import Array

LEAST_BYTES = 1 << 12  # smaller constants are worth no node of their own
_UNPACKED = "/unpacked"
_STEPS = 4  # nodes between the Cast and what reads the weight
_MIDDLE = 128  # the code of 0 where there is no zero point, in uint8
_NARROW = (
    *(ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8),
    *(ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2),
)
_WIDE = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_READERS = {"MatMul": (0, 1), "Gemm": (0, 1), "Conv": (1,), "ConvTranspose": (1,), "Gather": (0,)}


@dataclass(frozen=True)
class StoredWeight:
    """A weight as its file has it: (codes − zero) · scale.

    Attributes:
        codes: the initializer, int8, uint8 or a small float.
        zero: float, broadcasts with the codes; None for 0.
        scale: float, broadcasts with the codes; None for 1.
    """

    codes: Array
    zero: Array | None
    scale: Array | None

    def restored(self) -> Array:
        """Return the weight as float32, rounded as the graph rounds it."""
        wide = self.codes.astype(np.float32)
        wide = wide if self.zero is None else wide - self.zero
        return np.asarray(wide if self.scale is None else wide * self.scale, np.float32)

    def blocks(self, block_size: int, *, transposed: bool) -> Blocked | None:
        """Return the same numbers in blocks along the inputs of a linear layer; None where no kernel holds them.

        Args:
            block_size: of the inputs that share a scale there; here all of an output's inputs do.
            transposed: the codes are [out, in].
        """
        if self.codes.dtype not in (np.int8, np.uint8) or self.scale is None:
            return None
        lift = _MIDDLE if self.codes.dtype == np.int8 else 0
        scale, zero = (
            _of_columns(part, self.codes.shape, transposed=transposed)
            for part in (self.scale, np.zeros(1, np.float32) if self.zero is None else self.zero)
        )
        if (
            scale is None
            or zero is None
            or not np.all((zero == np.rint(zero)) & (zero >= -lift) & (zero <= 255 - lift))
        ):
            return None
        codes = (self.codes.astype(np.int16) + lift).astype(np.uint8)
        codes = np.ascontiguousarray(codes if transposed else codes.T)
        count = -(-codes.shape[1] // block_size)
        points = np.repeat((zero + lift).astype(np.uint8)[:, None], count, axis=1)
        scales = np.repeat(scale.astype(np.float32)[:, None], count, axis=1)
        return Blocked(codes, scales, None if np.all(points == _MIDDLE) else points, 8, block_size)


def _of_columns(part: Array, shape: tuple[int, ...], *, transposed: bool) -> Array | None:
    """Return what a scale or zero point is for each output, [out]; None where it differs between inputs."""
    full = np.broadcast_to(part, shape)
    full = full.T if transposed else full
    return np.asarray(full[0]) if np.array_equal(full, np.broadcast_to(full[:1], full.shape)) else None


def stored_weight(value: ir.Value | None) -> StoredWeight | None:
    """Return the weight that a value is, where it is stored in less than the value's own type."""
    scale, rest = _factor(value, "Mul")
    zero, rest = _factor(rest, "Sub")
    node = rest.producer() if rest is not None else None
    if node is None or not widens(node) or node.inputs[0] is None:
        return None
    codes = constant(node.inputs[0])
    if codes is None or codes.ndim != 2 or attribute(node, "to") != ir.DataType.FLOAT.value:
        return None
    parts = [part for part in (scale, zero) if part is not None]
    if any(part.dtype != np.float32 or np.broadcast_shapes(part.shape, codes.shape) != codes.shape for part in parts):
        return None
    return StoredWeight(codes, zero, scale)


def _factor(value: ir.Value | None, op_type: str) -> tuple[Array | None, ir.Value | None]:
    """Return the constant that a value was multiplied by or lessened by, and what it was before that."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, op_type):
        return None, value
    places = (1, 0) if op_type == "Mul" else (1,)
    for place in places:
        if is_constant(node.inputs[place]):
            return constant(node.inputs[place]), node.inputs[1 - place]
    return None, value


def widens(node: ir.Node) -> bool:
    """Tell whether a node is the Cast of a constant of some size to a wider type."""
    if not is_op(node, "Cast") or node.inputs[0] is None or not is_constant(node.inputs[0]):
        return False
    tensor, wanted = node.inputs[0].const_value, attribute(node, "to")
    if tensor is None or wanted is None or len(tensor.shape) < 2 or tensor.nbytes < LEAST_BYTES:
        return False
    wide = ir.DataType(wanted)
    return tensor.dtype in _NARROW and wide in _WIDE and wide.itemsize > tensor.dtype.itemsize


def widens_weight(node: ir.Node) -> bool:
    """Tell whether a node widens a stored weight: it is used as one, by nothing else."""
    return widens(node) and all(_is_weight(use.node, use.idx, _STEPS) for use in node.outputs[0].uses())


def _is_weight(node: ir.Node, place: int, steps: int) -> bool:
    """Tell whether what a node takes at a place is a weight of it, or becomes one in some steps."""
    if is_op(node, *_READERS):
        return place in _READERS[node.op_type]
    others = [value for index, value in enumerate(node.inputs) if index != place]
    passes_on = is_op(
        node, "Mul", "Sub", "Add", "Div", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"
    )
    if not steps or not passes_on or not all(is_constant(value) for value in others):
        return False
    return all(_is_weight(use.node, use.idx, steps - 1) for use in node.outputs[0].uses())


def unpack_weights(model: ir.Model) -> dict[str, StoredWeight]:
    """Give linear layers whose weights are stored in few bits constant ones in float32, so that they are seen as such.

    Args:
        model: changed.

    Returns:
        The weights as they were stored, by the name of the initializer that they are now.
    """
    made: dict[ir.Value, ir.Value] = {}
    found: dict[str, StoredWeight] = {}
    for node, value in list(_weights(model)):
        if value not in made:
            stored = stored_weight(value)
            if stored is None:
                continue
            plain = (value.name or "").removesuffix(".weight")
            name = f"{plain}{_UNPACKED}"
            made[value] = constant_value(tensor_of(stored.restored(), name), name)
            made[value].metadata_props[ORIGIN_KEY] = f"{plain}.weight"  # its label, also where that is a number
            model.graph.initializers.add(made[value])
            found[name] = stored
        node.replace_input_with(1, made[value])
    return found


def pack_weights(model: ir.Model, stored: Mapping[str, StoredWeight]) -> None:
    """Store those weights in few bits again that are still in float32, because their layers stay so.

    Args:
        model: changed.
        stored: from `unpack_weights`.
    """
    for name, weight in stored.items():
        value = model.graph.initializers.get(name)
        if value is None or not value.uses() or value.is_graph_output():
            continue
        nodes = [ir.node("Cast", [_add(model, weight.codes, f"{name}_codes")], {"to": ir.DataType.FLOAT.value})]
        for op_type, part in (("Sub", weight.zero), ("Mul", weight.scale)):
            if part is not None:
                operands = [nodes[-1].outputs[0], _add(model, part, f"{name}_{op_type.lower()}")]
                nodes.append(ir.node(op_type, operands))
        for number, node in enumerate(nodes):
            node.name = node.outputs[0].name = f"{name}_{number}"
        value.replace_all_uses_with(nodes[-1].outputs[0])
        nodes[-1].outputs[0].shape, nodes[-1].outputs[0].type = value.shape, value.type
        del model.graph.initializers[name]
        model.graph.insert_before(model.graph[0], nodes)


def _add(model: ir.Model, array: Array, name: str) -> ir.Value:
    value = constant_value(tensor_of(array, name), name)
    model.graph.initializers.add(value)
    return value


def _weights(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Yield the products of the main graph, each with its second operand."""
    for node in model.graph:
        if is_op(node, "MatMul", "Gemm") and node.inputs[1] is not None and not is_constant(node.inputs[0]):
            yield node, node.inputs[1]
