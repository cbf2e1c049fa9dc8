"""Keep activations as [tokens, features] between layers instead of reshaping them to and fro.

Before::

    Gemm ─ Reshape [batch, sequence, f] ─ Gelu ─ Reshape [tokens, f] ─ Gemm

After::

    Gemm ─ Gelu ─ Gemm

Meets: the result of lower-linear. A Reshape that restores the axes sinks below elementwise operators and normalizations
    of the last axis until something really needs the axes (attention, an output).
Numerics: exact. The same rows, the same order.
Source: elementwise f and row-wise f commute with a Reshape of the leading axes. In two dimensions the CPU session also
    cannot merge Add and LayerNormalization into SkipLayerNormalization, whose kernel is 7 times slower (1.31.1).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.graph import PASS_KEY, attribute, dims, integers, is_constant, is_op, remove_dead
from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Exact

ELEMENTWISE = frozenset(
    {"Gelu", "FastGelu", "QuickGelu", "Relu", "Tanh", "Sigmoid", "Erf", "Sqrt", "Neg", "Abs", "Elu", "LeakyRelu"}
)
ROW_WISE = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "Softmax"})
BINARY = frozenset({"Add", "Sub", "Mul", "Div"})


@register
class FlattenTokens(Pass):
    """f(Reshape(x))  →  Reshape(f(x))."""

    name = "flatten-tokens"
    numerics = Exact()
    enables = ("fold-residual",)

    def run(self, model: ir.Model) -> int:
        """Sink every restoring Reshape in one walk; returns how many nodes moved or went."""
        changed = 0
        for node in list(model.graph):
            if node.graph is not None:
                changed += _cancel(node) or _sink(node)
        remove_dead(list(model.graph))
        return changed


def _rows_behind(value: ir.Value | None) -> tuple[ir.Value, ir.Node] | None:
    """Return [tokens, features] and the Reshape behind it when a value restores leading axes of a matrix, else None."""
    if value is None:
        return None
    node = value.producer()
    if node is None or not is_op(node, "Reshape") or len(node.inputs) != 2:
        return None
    rows, shape = node.inputs
    before, after = dims(rows), dims(value)
    if rows is None or shape is None or before is None or after is None or len(before) != 2 or len(after) < 3:
        return None
    return (rows, node) if isinstance(before[1], int) and before[1] == after[-1] else None


def _cancel(node: ir.Node) -> int:
    """Reshape(Reshape(rows))  →  rows, when the result is the same matrix."""
    if not is_op(node, "Reshape") or node.outputs[0].is_graph_output():
        return 0
    behind = _rows_behind(node.inputs[0])
    if behind is None or len(dims(node.outputs[0]) or ()) != 2:
        return 0
    rows = behind[0]
    if (dims(node.outputs[0]) or (None, None))[1] != (dims(rows) or (0, 0))[1]:
        return 0
    node.outputs[0].replace_all_uses_with(rows)
    return 1


def _sink(node: ir.Node) -> int:
    if len([value for value in node.outputs if value.uses() or value.is_graph_output()]) != 1:
        return 0
    after = dims(node.outputs[0])
    if node.op_type in ELEMENTWISE or (node.op_type in ROW_WISE and _acts_on_last_axis(node, len(after or ()))):
        behind = _rows_behind(node.inputs[0])
        if behind is None or not all(_is_vector(value) for value in node.inputs[1:] if value is not None):
            return 0
        return _rebuild(node, [behind[0], *node.inputs[1:]], behind[1])
    if node.op_type not in BINARY or node.domain not in ("", "ai.onnx"):
        return 0
    return _sink_binary(node, after)


def _sink_binary(node: ir.Node, after: tuple[int | str | None, ...] | None) -> int:
    sides = [_rows_behind(value) for value in node.inputs]
    known = next((side for side in sides if side is not None), None)
    if known is None or after is None or None in after:
        return 0
    inputs: list[ir.Value | None] = []
    for value, side in zip(node.inputs, sides, strict=True):
        if side is not None and dims(value) == after:
            inputs.append(side[0])
        elif value is not None and _is_vector(value):
            inputs.append(value)
        elif value is not None and dims(value) == after:
            inputs.append(_flatten(node, value, known[0]))
        else:
            return 0
    return _rebuild(node, inputs, known[1])


def _is_vector(value: ir.Value) -> bool:
    """Tell whether a value is a constant that is the same for every row of a matrix: [n], [1, n] or a number."""
    shape = dims(value) or ()
    return is_constant(value) and len(shape) <= 2 and all(size == 1 for size in shape[:-1])


def _acts_on_last_axis(node: ir.Node, rank: int) -> bool:
    axis = attribute(node, "axis")
    return (-1 if axis is None else axis) in (-1, rank - 1)


def _flatten(node: ir.Node, value: ir.Value, rows: ir.Value) -> ir.Value:
    """Return a matrix of a value with all its axes, an existing one when there is one."""
    width = (dims(rows) or (0,))[-1]
    graph = node.graph
    if graph is None or not isinstance(graph, ir.Graph):
        raise ValueError(f"{node.name} is not in a graph")
    for use in value.uses():
        flat = use.node
        if is_op(flat, "Reshape") and flat.graph is graph and use.idx == 0 and integers(flat.inputs[1]) == (-1, width):
            graph.remove(flat)
            _place_behind(graph, value, flat)  # it may stand behind `node`
            return flat.outputs[0]
    name = f"{value.name}/{FlattenTokens.name}"
    target = ir.Value(
        name=f"{name}/shape",
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([2]),
        const_value=ir.tensor(np.array([-1, width], np.int64), dtype=ir.DataType.INT64, name=f"{name}/shape"),
    )
    graph.register_initializer(target)
    flat = ir.node("Reshape", [value, target], name=f"{name}/Reshape")
    flat.metadata_props[PASS_KEY] = FlattenTokens.name
    out = flat.outputs[0]
    out.name, out.type, out.shape = f"{name}/rows", value.type, rows.shape
    _place_behind(graph, value, flat)
    return out


def _place_behind(graph: ir.Graph, value: ir.Value, node: ir.Node) -> None:
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, [node])
    else:
        graph.insert_before(next(iter(graph)), [node])


def _rebuild(node: ir.Node, inputs: list[ir.Value | None], turn: ir.Node) -> int:
    """Put a node on rows and a Reshape like `turn` behind it; the Reshape takes over the old output's name."""
    graph, old = node.graph, node.outputs[0]
    if graph is None:
        return 0
    moved = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        list(node.attributes.values()),
        num_outputs=1,
        name=f"{node.name}/rows",
        version=node.version,
    )
    if node.op_type in ROW_WISE:
        moved.attributes["axis"] = ir.AttrInt64("axis", -1)  # the last axis has another number on rows
    rows = next(
        value for value in inputs if value is not None and len(dims(value) or ()) == 2 and not is_constant(value)
    )
    out = moved.outputs[0]
    out.name, out.type, out.shape = f"{old.name}/rows", old.type, rows.shape
    attributes = {name: attr.value for name, attr in turn.attributes.items()}
    restore = ir.node("Reshape", [out, turn.inputs[1]], attributes, name=f"{node.name}/restore")
    for made in (moved, restore):
        made.metadata_props[PASS_KEY] = FlattenTokens.name
    graph.insert_before(node, [moved, restore])
    new, name, kind, dimensions = restore.outputs[0], old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{name}/replaced"
    new.name, new.type, new.shape = name, kind, dimensions
    graph.remove(node, safe=True)
    return 1
