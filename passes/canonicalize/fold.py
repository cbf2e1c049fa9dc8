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

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from onnxopt.graph import all_nodes, is_constant, is_op
from onnxopt.graph.linears import ORIGIN_KEY, origin
from onnxopt.graph.stored_weights import widens_weight
from onnxopt.probe.memory import release_pages
from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated

FREE_BYTES = 2**20
WIDENED_BYTES = 2**16  # of a Cast: layers have many weights of some hundred kilobytes, which add up
LARGEST_BYTES = 2**31
PAGES_BYTES = 2**25  # of files that are held in memory at a time
# the size of the result is a number in an input, and not bounded by the sizes of all inputs together
MAKES = ("Expand", "Tile", "ConstantOfShape", "Range", "Pad", "Resize", "Upsample", "OneHot", "EyeLike")
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
        sources = [value.const_value for value in model.graph.initializers.values()]
        names = _origins(model)
        fold_constants(model, input_size_limit=LARGEST_BYTES, output_size_limit=LARGEST_BYTES, should_fold=_should_fold)
        _store_in_rows(model, sources)
        for name, value in model.graph.initializers.items():
            if name in names:
                value.metadata_props.setdefault(ORIGIN_KEY, names[name])
        return len(before - set(all_nodes(model))) + spelled


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


def _store_in_rows(model: ir.Model, sources: Sequence[ir.TensorProtocol | None]) -> None:
    """Copy folded results that are strided views, such as a transposed weight, into row-major order.

    Args:
        model: its initializers are looked through.
        sources: tensors that the views may look into; what they hold of a file in memory is let go on the way.
    """
    copied = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.Tensor) or tensor.numpy().flags.c_contiguous:
            continue
        value.const_value = ir.Tensor(np.asarray(tensor.numpy(), order="C"), dtype=tensor.dtype, name=value.name)
        copied += tensor.nbytes
        if copied > PAGES_BYTES:
            release_pages(sources)
            copied = 0
    release_pages(sources)


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
