"""Split a tensor into tensors instead of into a sequence of them.

Before::

    x ─ SplitToSequence ─┬─ SequenceAt(0) ─ a
                         └─ SequenceAt(1) ─ b

After::

    x ─ Split ─ a, b

Meets: torch.split in dynamo exports, such as GPT-2's packed queries, keys and values.
Numerics: exact.
Source: ONNX operators SplitToSequence, SequenceAt, Split.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.graph import attribute, dims, integers, is_op, number, opset, rank, remove_dead
from onnxopt.rewrite import Builder, Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Exact


@register
class SplitSequence(Pass):
    """SequenceAt(SplitToSequence(x), i)  →  Split(x)[i]."""

    name = "split-sequence"
    min_opset = 13  # before, the sizes of a Split are an attribute
    numerics = Exact()
    enables = ("fuse-attention-heads", "pack-qkv")

    def run(self, model: ir.Model) -> int:
        """Rewrite every sequence whose parts have known sizes and are taken one by one; return how many."""
        if opset(model) < self.min_opset:
            return 0
        done = 0
        for node in list(model.graph):
            sizes = _sizes(node) if is_op(node, "SplitToSequence") else None
            if sizes is None:
                continue
            users = [use.node for use in node.outputs[0].uses()]
            places = [number(user.inputs[1]) if is_op(user, "SequenceAt") else None for user in users]
            if node.outputs[0].is_graph_output() or not users or any(place is None for place in places):
                continue
            _rewrite(model, node, sizes, users, [int(place or 0) for place in places])
            done += 1
        return done


def _sizes(node: ir.Node) -> tuple[int, ...] | None:
    """Return the sizes of the parts along the split axis, None when they depend on the input."""
    if not attribute(node, "keepdims"):
        return None  # single slices lose their axis; the runtime takes it away even where sizes are given
    shape, axis = dims(node.inputs[0]), int(attribute(node, "axis") or 0)
    length = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    if not isinstance(length, int):
        return None
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return (1,) * length
    given = integers(node.inputs[1])
    if rank(node.inputs[1]) == 1:
        return given if given is not None and sum(given) == length else None
    step = int(number(node.inputs[1]) or 0)
    if step < 1:
        return None
    return tuple(min(step, length - start) for start in range(0, length, step))


def _rewrite(model: ir.Model, node: ir.Node, sizes: tuple[int, ...], users: list[ir.Node], places: list[int]) -> None:
    op = Builder(model, node.outputs[0].name or node.name or "split", SplitSequence.name)
    axis = {"axis": attribute(node, "axis")}
    parts = op.node("Split", [node.inputs[0], op.ints(sizes, "sizes")], axis, outputs=len(sizes))
    for value in op.initializers:
        model.graph.register_initializer(value)
    model.graph.insert_before(node, op.nodes)
    for user, place in zip(users, places, strict=True):
        old, new = user.outputs[0], parts[place]
        name, old.name = old.name, f"{old.name}/in-sequence"
        if old.is_graph_output() and new.is_graph_output():  # one tensor has one name
            keep = ir.node("Identity", [new], name=f"{name}/keep")
            model.graph.insert_before(node, [keep])
            new = keep.outputs[0]
        if old.is_graph_output() or not new.uses():
            new.name = name
        new.shape, new.type = old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    remove_dead(users)
