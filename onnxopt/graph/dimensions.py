"""What operators do to axes, as far as it is known for every size: reductions, Squeeze, Unsqueeze and Reshape."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxopt.graph.nodes import CONTRIB, attribute, is_op
from onnxopt.graph.values import Dim, dims, integers, is_constant, known_dims, rank

# The first output has the shape of the first input, whatever the others are.
KEEPS_SHAPE = (
    *("Cast", "Dropout", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LayerNormalization"),
    *("LeakyRelu", "Mish", "RMSNormalization", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Tanh"),
)
KEEPS_SHAPE_CONTRIB = ("BiasGelu", "FastGelu", "QuickGelu")
ELEMENTWISE_PAIRS = ("Add", "Div", "Mul", "Sub")
MOST_STEPS = 32  # back from a value; whatever is found by then serves, only less of it is shared


def reduced_axes(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    """Return the axes that a Reduce operator reduces, from 0, in order; None when they are computed.

    Args:
        node: its axes are an input (ReduceSum since opset 13, the others since 18) or an attribute.
        rank: of what it reduces.
    """
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        found: Sequence[int] | None = integers(node.inputs[1])
        if found is None:
            return None
    else:
        found = attribute(node, "axes")
    if not found:  # noop_with_empty_axes is there to leave such a tensor as it is
        return None if attribute(node, "noop_with_empty_axes") else tuple(range(rank))
    return tuple(sorted(axis % rank for axis in found)) if rank else None


def one_axis_of(node: ir.Node, rank: int) -> int | None:
    """Return the only axis that a Reduce operator reduces, from 0, else None."""
    axes = reduced_axes(node, rank)
    return axes[0] if axes is not None and len(axes) == 1 else None


def named_axes(node: ir.Node) -> tuple[int, ...] | None:
    """Return the axes that a Squeeze or Unsqueeze names, as an input since opset 13; None where it names none."""
    found = integers(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
    return None if found is None else tuple(found)


def has_axis_of_one(value: ir.Value | None, x: ir.Value, axis: int, reduced: Sequence[ir.Node], *, moved: bool) -> bool:
    """Tell whether a value computed from reductions of x has the axes of x, with 1 in place of the reduced one.

    Args:
        value: the result.
        x: what was reduced.
        axis: the reduced axis, from 0.
        reduced: the reductions behind the value, with nothing but elementwise operators between.
        moved: a Reshape or Unsqueeze lies between too, so that only dimensions can tell.
    """
    before: tuple[Dim, ...] = dims(x) or ()
    if not moved and all(attribute(node, "keepdims") == 1 for node in reduced):
        return rank(value) == len(before)
    return known_dims(value) == (*before[:axis], 1, *before[axis + 1 :])


def copies_first_axis(reshape: ir.Node) -> bool:
    """Tell whether a Reshape copies the first axis; the second then stays as well if all others keep their count.

    Its target is a constant, or a Concat whose first part is one, and starts with 0.
    """
    if attribute(reshape, "allowzero") or len(reshape.inputs) < 2:
        return False
    shape = reshape.inputs[1]
    producer = shape.producer() if shape is not None else None
    first = producer.inputs[0] if producer is not None and is_op(producer, "Concat") else shape
    return (integers(first) or (None,))[0] == 0


def with_leading_axes_of(value: ir.Value) -> ir.Value:
    """Return the earliest value, going back from one, that has the same axes in front of the last, at every size.

    A shape that is read there serves all layers behind it, and what lies between need not be kept for its shape.

    Args:
        value: of known rank, two or more.
    """
    return _leading_source(value, MOST_STEPS, {})


def _leading_source(value: ir.Value, steps: int, known: dict[ir.Value, ir.Value]) -> ir.Value:
    if value not in known:
        before = _same_leading_axes(value, steps, known) if steps else None
        known[value] = value if before is None else _leading_source(before, steps - 1, known)
    return known[value]


def _same_leading_axes(value: ir.Value, steps: int, known: dict[ir.Value, ir.Value]) -> ir.Value | None:
    """Return a value one step back, or a few for a sum of branches, with the same leading axes; None without one."""
    node = value.producer()
    if node is None or value is not node.outputs[0] or not node.inputs or node.inputs[0] is None:
        return None
    x = node.inputs[0]
    if is_op(node, *KEEPS_SHAPE) or is_op(node, *KEEPS_SHAPE_CONTRIB, domain=CONTRIB):
        return x
    if is_op(node, "MatMul"):
        return x if rank(node.inputs[1]) == 2 else None
    if is_op(node, "Reshape"):
        return _restored_from(node)
    if not is_op(node, *ELEMENTWISE_PAIRS):
        return None
    first, second = node.inputs[0], node.inputs[1]
    if first is None or second is None:
        return None
    for kept, other in ((first, second), (second, first)):
        if is_constant(other) and rank(other) in (0, 1):
            return kept
    source = _leading_source(first, steps - 1, known)
    return source if source is _leading_source(second, steps - 1, known) else None


def _restored_from(reshape: ir.Node) -> ir.Value | None:
    """Return the value from which a Reshape reads all axes but the last, which it takes from a constant."""
    target = reshape.inputs[1].producer() if len(reshape.inputs) > 1 and reshape.inputs[1] is not None else None
    if target is None or not is_op(target, "Concat") or len(target.inputs) != 2 or not attribute(reshape, "allowzero"):
        return None
    leading, last = target.inputs
    shape = leading.producer() if leading is not None else None
    if shape is None or not is_op(shape, "Shape") or integers(last) is None or len(integers(last) or ()) != 1:
        return None
    last_axis = (rank(shape.inputs[0]) or 0) - 1
    whole = (attribute(shape, "start") or 0) == 0 and attribute(shape, "end") in (-1, last_axis)
    return shape.inputs[0] if whole and last_axis > 0 else None
