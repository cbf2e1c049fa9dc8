"""Let a decoder answer for all positions again, where it was exported or trimmed to answer for the last one only.

Statistics of a layer that sees one row of a text, and losses of one token of a text, would take as many runs as there
are tokens. Every operator behind the pick of the last row treats rows apart, so the pick is taken out: what is computed
for the last row is then computed for all, by the same nodes.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.graph import PASS_KEY, dims, integers, is_op
from onnxopt.graph.cache import SEQUENCE
from onnxopt.rewrite import Builder

FAR = 2**31 - 1
IDS, LOGITS = "input_ids", "logits"
TRIM = "trim-rows"


def all_positions(model: ir.Model) -> ir.Model:
    """Return a copy of a fused decoder whose logits are [batch, sequence, words].

    Args:
        model: with `logits` of the last position or of all; not changed. Copied weights share their memory.
    """
    copy = model.clone()
    logits = next((value for value in copy.graph.outputs if value.name == LOGITS), None)
    shape = dims(logits) or ()
    if logits is None or len(shape) != 3 or shape[1] == SEQUENCE:
        return copy
    picks = [node for node in copy.graph if _takes_last_row(node)]
    for node in picks:
        source = node.inputs[0]
        assert source is not None  # noqa: S101 - a Slice has one
        node.outputs[0].replace_all_uses_with(source)
    copy.graph.remove(picks, safe=True)
    if picks:
        _restore_rows(copy)
    for node in copy.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    logits.shape = ir.Shape([shape[0], SEQUENCE, shape[2]])
    return copy


def _restore_rows(model: ir.Model) -> None:
    """Where rows of one position a text get their axes back, give them the axes of all positions."""
    ids = next(value for value in model.graph.inputs if value.name == IDS)
    builder = Builder(model, "all", "positions")
    batch = builder.Shape(ids, start=0, end=1)
    for node in list(model.graph):
        sizes = (
            integers(node.inputs[1]) if is_op(node, "Reshape") and node.metadata_props.get(PASS_KEY) == TRIM else None
        )
        if sizes is not None and len(sizes) > 2 and sizes[:2] == (-1, 1):
            rest = builder.ints([-1, *sizes[2:]], f"axes_{len(builder.nodes)}")
            node.replace_input_with(1, builder.Concat(batch, rest, axis=0))
    for value in builder.initializers:
        model.graph.register_initializer(value)
    model.graph.insert_before(next(iter(model.graph)), builder.nodes)


def _takes_last_row(node: ir.Node) -> bool:
    """Tell whether a node picks the last entry of an axis before the last one."""
    if not is_op(node, "Slice") or len(node.inputs) < 4:
        return False
    start, end, axis = (integers(value) for value in node.inputs[1:4])
    step = integers(node.inputs[4]) if len(node.inputs) > 4 else (1,)
    rank = len(dims(node.inputs[0]) or ())
    if start != (-1,) or end is None or len(end) != 1 or end[0] < FAR or step != (1,) or axis is None:
        return False
    return rank > 1 and 0 < axis[0] % rank < rank - 1
