"""Where heads and windows of an attention lie."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.graph import attribute, dims, integers, is_op, number, rank
from onnxopt.graph.cache import SEQUENCE

HEADS_FIRST = (0, 2, 1, 3)  # [batch, sequence, heads, size] <-> [batch, heads, sequence, size]
ENDLESS = 2**62


def takes_last(node: ir.Node) -> bool | None:
    """Tell how a node takes the last of [batch, sequence, ...]: True keeps the axis, False drops it."""
    data = node.inputs[0] if node.inputs else None
    if (dims(data) or ())[:2] != ("batch", SEQUENCE) or len(dims(data) or ()) < 3:
        return None
    if is_op(node, "Slice"):
        starts, ends, axes = (integers(value) for value in node.inputs[1:4])
        whole = ends is not None and ends[0] >= 2**31 - 1 and axes in ((1,), (-2,))
        return True if starts == (-1,) and whole else None
    if is_op(node, "Gather") and attribute(node, "axis") in (1, -2) and number(node.inputs[1]) == -1.0:
        return rank(node.inputs[1]) == 1 if (rank(node.inputs[1]) or 0) < 2 else None
    return None
