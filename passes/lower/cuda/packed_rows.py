"""Put each row's real tokens in front, so that attention is told lengths instead of a mask.

Before::

    x [batch, sequence, d] ─ Attention(mask [batch, sequence]) ─ … ─ y [batch, sequence, d]

After::

    x ─ Gather(real tokens first) ─ Attention(lengths [batch]) ─ … ─ Gather(as they were) ─ y

Meets: encoders after lower-attention, on CUDA. Whatever treats every token alike (linears, norms, activations) does not
    notice the order, and attention over keys does not either: positions are in the tokens. So lengths are right
    whatever the padding was: right, left, or holes.
Numerics: reassociated: an attention sums over its keys in another order. Padded positions of an output change.
Source: with a two-dimensional mask ONNX Runtime's CUDA attention takes its unfused kernel; with lengths, or without a
    mask, it takes cuDNN's or a flash kernel. A one-dimensional mask means padding on the right only (onnxruntime issue
    18945), which is what packing makes. TopK need not be stable for that. A branch on the kind of padding would keep
    the graph out of a CUDA graph. Where a user has promised that padding is on the right alone, nothing is reordered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import CONTRIB, STANDARD_DOMAINS, attribute, dims, is_constant, is_op, opset, rank, remove_dead
from onnxopt.graph.cache import PADDING_KEY
from onnxopt.passes.words.contrib import FAR_BELOW, MASK_FILTER
from onnxopt.probe.sidegraph import is_contract
from onnxopt.rewrite import AS_IS, Builder, Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated

ALIKE = frozenset({"Add", "Mul", "Sub", "Div", "Sum", "Gelu", "Relu", "Tanh", "Sigmoid", "Erf"})
ALIKE_OWN = frozenset({"BiasGelu", "FastGelu", "Gelu", "QuickGelu"})
NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
SKIP_NORMS = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})
MASK_INPUT = 3
POSITIONS_INPUT = 8  # of EmbedLayerNormalization
INT32, FLOAT, BOOL = ir.DataType.INT32.value, ir.DataType.FLOAT.value, ir.DataType.BOOL.value


@dataclass(frozen=True)
class _Part:
    """The nodes that may work on packed rows.

    Attributes:
        nodes: in order, the attentions among them.
        attentions: those with the mask.
        mask: [batch, sequence], what the attentions' masks are cast from.
    """

    nodes: list[ir.Node]
    attentions: list[ir.Node]
    mask: ir.Value


@register
class PackRows(Pass):
    """Attention(x, mask)  →  Attention(x with real tokens first, lengths)."""

    name = "pack-rows"
    numerics = Reassociated(rtol=1e-4, atol=1e-5)
    touches_padding = True
    min_opset = 13
    forms = ("lengths", AS_IS)

    def run(self, model: ir.Model) -> int:
        """Pack the rows once, or leave the graph alone; returns how many attentions are told lengths."""
        part = _part(model) if opset(model) >= self.min_opset else None
        if part is None:
            return 0
        if isinstance(part, str):
            self.refuse(part)
            return 0
        _pack(model, part)
        return len(part.attentions)


def _part(model: ir.Model) -> _Part | str | None:
    """Return what can be packed, why not, or None where no attention has a mask."""
    attentions = [
        node
        for node in model.graph
        if is_op(node, "Attention", domain=CONTRIB) and len(node.inputs) > MASK_INPUT and node.inputs[MASK_INPUT]
    ]
    masks = {_source(node.inputs[MASK_INPUT]) for node in attentions}
    if not attentions:
        return None
    mask = masks.pop()
    if masks or mask is None or rank(mask) != 2:
        return "the attentions have different masks, or one that is no input"
    if not is_contract(mask):
        return f"{mask.name} may leave a row nothing to see"
    if any((attribute(node, "mask_filter_value") or MASK_FILTER) > FAR_BELOW for node in attentions):
        return "masked scores get a number that others may come near"
    others = [node for node in model.graph if "Attention" in node.op_type and node not in attentions]
    if others:
        return f"{others[0].name} has no such mask"
    if any(len(node.inputs) > MASK_INPUT + 1 or attribute(node, "unidirectional") for node in attentions):
        return "an attention has a bias, a cache or a direction"
    axes = dims(mask) or ()
    members = {node for node in model.graph if node in attentions or _treats_alike(node, axes)}
    members = _connected(members, attentions)
    return _Part([node for node in model.graph if node in members], attentions, mask)


def _source(mask: ir.Value | None) -> ir.Value | None:
    """Return what a mask was cast from."""
    while mask is not None and (producer := mask.producer()) is not None:
        if not is_op(producer, "Cast"):
            return None
        mask = producer.inputs[0]
    return mask


def _treats_alike(node: ir.Node, axes: Sequence[int | str | None]) -> bool:
    """Tell whether a node does the same with every token, in [batch, sequence, width]."""

    def on_tokens(value: ir.Value | None) -> bool:
        return rank(value) == 3 and tuple((dims(value) or ())[:2]) == tuple(axes)

    def plain(value: ir.Value | None) -> bool:
        return value is None or (is_constant(value) and (rank(value) or 0) <= 1)

    if not on_tokens(node.outputs[0]) or any(value.uses() for value in node.outputs[1:3]):
        return False
    rest = all(plain(value) for value in node.inputs[1:])
    if node.domain == CONTRIB:
        if node.op_type in SKIP_NORMS:
            return all(map(on_tokens, node.inputs[:2])) and all(plain(value) for value in node.inputs[2:])
        return node.op_type in ALIKE_OWN and on_tokens(node.inputs[0]) and rest
    if node.domain not in STANDARD_DOMAINS:
        return False
    if node.op_type == "MatMul":
        return on_tokens(node.inputs[0]) and is_constant(node.inputs[1]) and rank(node.inputs[1]) == 2
    if node.op_type in NORMS:
        return on_tokens(node.inputs[0]) and rest and attribute(node, "axis") in (-1, 2, None)
    return node.op_type in ALIKE and all(on_tokens(value) or plain(value) for value in node.inputs)


def _connected(members: set[ir.Node], attentions: Sequence[ir.Node]) -> set[ir.Node]:
    """Keep the members behind an attention, and those in front of one that lie behind another."""
    behind: set[ir.Node] = set()
    stack = list(attentions)
    while stack:
        node = stack.pop()
        if node not in behind:
            behind.add(node)
            stack.extend(use.node for value in node.outputs for use in value.uses() if use.node in members)
    return behind


def _pack(model: ir.Model, part: _Part) -> None:
    op = Builder(model, "rows", PackRows.name)
    real = op.Cast(op.Cast(part.mask, to=BOOL), to=FLOAT)
    one = op.constant(np.array(1.0, np.float32), "one")
    filled = op.Max(op.ReduceSum(real, op.ints([1], "axis"), keepdims=0), one)  # a row of padding has a key, too
    lengths = op.Cast(filled, to=INT32)
    for node in part.attentions:
        node.replace_input_with(MASK_INPUT, lengths)
    if model.graph.metadata_props.get(PADDING_KEY) == "right":
        model.graph.insert_before(part.nodes[0], op.nodes)
    else:
        _reorder(model, part, op, real)
    for value in op.initializers:
        if value.uses():
            model.graph.register_initializer(value)
    model.graph.sort()
    remove_dead([node for node in model.graph if is_op(node, "Cast")])


def _reorder(model: ir.Model, part: _Part, op: Builder, real: ir.Value) -> None:
    """Put real tokens in front on the way in, and everything back in its place on the way out."""
    inside = set(part.nodes)
    entering = _entering(part)
    leaving = [
        value
        for node in part.nodes
        for value in node.outputs
        if value.name and (value.is_graph_output() or any(use.node not in inside for use in value.uses()))
    ]
    length = op.sizes(part.mask, 1, 2, "length")
    order = op.node("TopK", [real, length], {"axis": 1}, outputs=2)[1]  # real tokens first
    batch = op.sizes(part.mask, 0, 1, "batch")
    zero = op.constant(np.array(0, np.int64), "zero")
    step = op.Squeeze(length)
    starts = op.Unsqueeze(op.Range(zero, op.Mul(op.Squeeze(batch), step), step), op.ints([1], "column"))

    def rows(value: ir.Value, places: ir.Value, name: str) -> ir.Value:
        """[batch, sequence, width] with the rows of each text in another order."""
        width = int((dims(value) or (0,))[-1] or 0)
        flat = op.Reshape(value, op.ints([-1, width], f"rows_{name}"))
        made = op.Gather(flat, places, axis=0)
        made.type, made.shape = value.type, value.shape
        return made

    embedding = _embedding(entering, inside)
    if embedding is not None:
        _pack_ids(op, embedding, order)
    else:
        there = op.Add(order, starts)
        for index, value in enumerate(entering):
            packed = rows(value, there, f"in_{index}")
            for use in list(value.uses()):
                if use.node in inside:
                    use.node.replace_input_with(use.idx, packed)
    front = len(op.nodes)
    back = op.Add(op.node("TopK", [order, length], {"axis": 1, "largest": 0}, outputs=2)[1], starts)
    for index, value in enumerate(leaving):
        _hand_out(model, value, rows(value, back, f"out_{index}"), inside)
    model.graph.insert_before(embedding or part.nodes[0], op.nodes[:front])
    model.graph.insert_after(part.nodes[-1], op.nodes[front:])


def _entering(part: _Part) -> list[ir.Value]:
    """Return the tokens that come from outside."""
    inside = set(part.nodes)
    found: dict[ir.Value, None] = {}
    for node in part.nodes:
        for value in node.inputs:
            if value is None or is_constant(value) or value.producer() in inside or rank(value) != 3:
                continue
            found[value] = None
    return list(found)


def _embedding(entering: Sequence[ir.Value], inside: set[ir.Node]) -> ir.Node | None:
    """Return the lookup that makes all tokens and that nobody else reads: its ids are lighter than its rows."""
    if len(entering) != 1:
        return None
    value, producer = entering[0], entering[0].producer()
    if producer is None or not is_op(producer, "EmbedLayerNormalization", domain=CONTRIB) or value.is_graph_output():
        return None
    return producer if all(use.node in inside for use in value.uses()) else None


def _pack_ids(op: Builder, embedding: ir.Node, order: ir.Value) -> None:
    """Look up the tokens in packed order; their positions are the columns they come from."""
    for place in (0, 1, POSITIONS_INPUT):
        ids = embedding.inputs[place] if place < len(embedding.inputs) else None
        if ids is not None:
            embedding.replace_input_with(place, op.GatherElements(ids, order, axis=1))
    if len(embedding.inputs) <= POSITIONS_INPUT or embedding.inputs[POSITIONS_INPUT] is None:
        embedding.resize_inputs(POSITIONS_INPUT + 1)
        embedding.replace_input_with(POSITIONS_INPUT, op.Cast(order, to=INT32))


def _hand_out(model: ir.Model, value: ir.Value, spread: ir.Value, inside: set[ir.Node]) -> None:
    """Give readers outside, and the outputs of the graph, the tokens in their own places."""
    spread_nodes = {spread.producer(), *(v.producer() for v in _inputs(spread))}
    for use in list(value.uses()):
        if use.node not in inside and use.node not in spread_nodes:
            use.node.replace_input_with(use.idx, spread)
    name = value.name
    value.name, spread.name = f"{name}/packed", name
    for index, output in enumerate(model.graph.outputs):
        if output is value:
            model.graph.outputs[index] = spread


def _inputs(value: ir.Value) -> Sequence[ir.Value]:
    producer = value.producer()
    return [one for one in producer.inputs if one is not None] if producer is not None else []
