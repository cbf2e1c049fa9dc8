"""What operators do to axes, as far as it is known for every size: reductions, Squeeze, Unsqueeze and Reshape."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxopt.graph import Dim, attribute, dims, integers, is_op, known_dims, rank


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
