"""Compute at build time what does not depend on the inputs, within a size budget.

Before::

    weight ─ Transpose ─┐
    x ──────────────────┴─ MatMul ─ y

After::

    x ─ MatMul(weightᵀ) ─ y

Meets: every exporter.
Numerics: exact up to the runtime's own rounding of the folded node.
Source: onnxscript.optimizer.fold_constants. The budget keeps Expand, Tile, ConstantOfShape and outer products from
    growing the file (onnxsim issue 291): a result may be as large as the constants it replaces, or one mebibyte. So
    a weight that is kept as int8 in front of Cast and Mul stays one; the runtime computes it when it opens the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from onnxopt.graph import all_nodes, is_constant, is_op
from onnxopt.graph.linears import ORIGIN_KEY, origin
from onnxopt.graph.stored_weights import widens_weight
from onnxopt.graph.weight_files import Widened, tensor_of, turn_in_files, weight_file
from onnxopt.probe.memory import release_pages
from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated

FREE_BYTES = 2**20
WIDENED_BYTES = 2**16  # of a Cast: layers have many weights of some hundred kilobytes, which add up
LARGEST_BYTES = 2**31
# the size of the result is a number in an input, and not bounded by the sizes of all inputs together
MAKES = ("Expand", "Tile", "ConstantOfShape", "Range", "Pad", "Resize", "Upsample", "OneHot", "EyeLike")
MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Gather", "Identity")  # numbers of their first input
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
        spelled = _spell_casts(model)
        before = set(all_nodes(model))
        names = _origins(model)
        _turn_weights(model)
        results = _Results()
        fold_constants(
            model,
            input_size_limit=LARGEST_BYTES,
            output_size_limit=LARGEST_BYTES,
            should_fold=results.decide,
        )
        results.lay_down()
        for name, value in model.graph.initializers.items():
            if name in names:
                value.metadata_props.setdefault(ORIGIN_KEY, names[name])
        return len(before - set(all_nodes(model))) + spelled


def _turn_weights(model: ir.Model) -> None:
    """Transpose what lies in files as it lies, where large constants are laid down; the library would widen it."""
    file = weight_file()
    if file is None:
        return
    read = [value.const_value for value in model.graph.initializers.values()]
    turn_in_files(model, wanted=lambda node: _should_fold(node) is True, laid=file)
    release_pages(read)


class _Results:
    """Lays each result down in row-major order before the next one is made.

    A strided view, such as a transposed weight, would hold what it looks into: one weight is in memory at a time.
    """

    def __init__(self) -> None:
        self._last: ir.Node | None = None
        self._graph: ir.Graph | ir.Function | None = None
        self._read: list[ir.TensorProtocol | None] = []

    def decide(self, node: ir.Node) -> bool | None:
        """Tell whether a node may be folded; the library asks before it does."""
        self.lay_down()
        decision = _should_fold(node)
        if decision is not False:
            self._last, self._graph = node, node.graph
            self._read = [value.const_value for value in node.inputs if value is not None]
        return decision

    def lay_down(self) -> None:
        """Lay down what came of the last node, and let go of what was read for it."""
        node, graph = self._last, self._graph
        self._last = self._graph = None
        if node is None or not isinstance(graph, ir.Graph):
            return
        for made in node.outputs:
            value = graph.initializers.get(made.name or "")
            tensor = value.const_value if value is not None else None
            if value is None or not isinstance(tensor, ir.Tensor):
                continue
            value.const_value = _in_rows(tensor, _held_by(node, self._read))
            if tensor.nbytes > FREE_BYTES:
                release_pages(self._read)
        self._read = []


def _held_by(node: ir.Node, read: Sequence[ir.TensorProtocol | None]) -> ir.DataType | None:
    """Return the 16 bits in which a weight lies that a node moves: they hold what comes of it; None for other nodes."""
    moved = read[0] if is_op(node, *MOVES) and read else None
    return moved.stored.dtype if isinstance(moved, Widened) else None


def _in_rows(tensor: ir.Tensor[Any], held_by: ir.DataType | None) -> ir.TensorProtocol:
    array = tensor.numpy()
    laid = tensor_of(array, tensor.name or "", held_by)
    # NumPy knows no types of 4 bits and less, which a tensor in memory may name
    return laid if laid.dtype == tensor.dtype else ir.Tensor(np.asarray(array, order="C"), dtype=tensor.dtype)


def _spell_casts(model: ir.Model) -> int:
    """Write a CastLike to a known type as a Cast with its attributes; return how many.

    The library writes it without them, and so loses what becomes of numbers beyond the new type (`saturate`).
    """
    count = 0
    for node in all_nodes(model):
        if not is_op(node, "CastLike") or not node.attributes or node.inputs[1] is None:
            continue
        dtype = node.inputs[1].dtype
        if dtype is None:
            continue
        node.op_type = "Cast"
        node.attributes["to"] = ir.AttrInt64("to", dtype.value)
        node.resize_inputs(1)
        count += 1
    return count


def _origins(model: ir.Model) -> dict[str, str]:
    """Return for what could be folded the name in the checkpoint of the one large constant that it is made of."""
    names: dict[str, str] = {}
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        large = [value for value in inputs if (value.name or "") in names or (is_constant(value) and _matrix(value))]
        if len(large) == 1 and all(is_constant(value) or (value.name or "") in names for value in inputs):
            found = names.get(large[0].name or "") or origin(large[0])
            names.update((value.name, found) for value in node.outputs if value.name)
    return names


def _matrix(value: ir.Value) -> bool:
    return value.const_value is not None and len(value.const_value.shape) >= 2


def _should_fold(node: ir.Node) -> bool | None:
    """Tell whether a node may be folded; None leaves it to the library."""
    if node.op_type in NEVER or node.domain not in ("", "ai.onnx"):
        return False
    inputs = [value for value in node.inputs if value is not None]
    if not inputs or not all(is_constant(value) for value in inputs):
        return None
    if widens_weight(node):
        return False  # the file would store in many bits what it has in few
    sizes = [value.const_value.nbytes for value in inputs if value.const_value is not None]
    used = max(sizes, default=0)
    if is_op(node, "Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze"):
        if _result_bytes(node) > max(WIDENED_BYTES, used):  # a Cast of a weight that is kept in few bits
            return False
        return used <= FREE_BYTES or all(len(value.uses()) == 1 for value in inputs if _large(value))
    # what nobody else reads goes when the result comes
    replaced = sum(v.const_value.nbytes for v in inputs if v.const_value is not None and len(v.uses()) == 1)
    return None if _result_bytes(node) <= max(FREE_BYTES, used, replaced) else False


def _large(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.nbytes > FREE_BYTES


def _result_bytes(node: ir.Node) -> int:
    """Return the bytes of a node's result; where they are not known, the most that can come of its inputs."""
    value = node.outputs[0]
    if value.shape is None or value.dtype is None or not all(isinstance(dim, int) for dim in value.shape):
        if is_op(node, *MAKES):
            return LARGEST_BYTES
        tensors = [v.const_value for v in node.inputs if v is not None and v.const_value is not None]
        width = max((float(tensor.dtype.itemsize) for tensor in tensors), default=1.0)
        return int(math.prod(int(tensor.size) for tensor in tensors) * width)
    count = 1
    for dim in value.shape:
        count *= int(dim)  # type: ignore[arg-type]  # checked to be integers above
    return int(count * value.dtype.itemsize)
