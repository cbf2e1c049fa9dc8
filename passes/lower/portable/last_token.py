"""Let a decoder answer for the last real token of a row, wherever its padding lies.

Before::

    x [batch, sequence, width] ─ Slice(-1) ─ … ─ logits

After::

    attention_mask ─ Cast(bool) ─ Slice(new tokens) ─ Mul(columns) ─ ReduceMax ─┐
    x ──────────────────────────────────────────────────────────────────────────┴─ GatherND ─ … ─ logits

Meets: decoders with a cache whose logits are those of the last position, after trim-rows, whatever kernel their
    attentions got: lower-cached-attention packs rows, and then answers for the last real token itself.
Numerics: exact. Where the last column is a real token it is the same row. Where it is padding, it was nobody's answer.
Source: Hugging Face tokenizers pad on the right unless told otherwise, and so does onnxruntime-genai in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import attribute, dims, integers, is_op, number
from onnxopt.graph.cache import SEQUENCE, TOTAL, keeps_packed
from onnxopt.passes.words.layout import ENDLESS
from onnxopt.rewrite import Builder, Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Exact

FAR = 2**31 - 1  # what counts as the end of an axis


@dataclass(frozen=True)
class _Last:
    """A choice of the last of the new tokens.

    Attributes:
        node: a Slice or a Gather.
        axis: that of the tokens.
        batched: the first axis is that of the rows; else all rows have the same (a causal mask, say).
        keep: the axis stays, with one entry.
        missing: leading axes that broadcasting adds, the rows' own the first of them.
    """

    node: ir.Node
    axis: int
    batched: bool
    keep: bool
    missing: int = 0


@register
class LowerLastToken(Pass):
    """x[:, -1]  →  x[:, place of the last real token]."""

    name = "lower-last-token"
    min_opset = 18
    numerics = Exact()
    touches_padding = True

    def run(self, model: ir.Model) -> int:
        """Replace every choice of the last position of new tokens, or none of them; return how many."""
        graph = model.graph
        if keeps_packed(model):
            return 0  # columns of packed rows are not those of the mask
        mask = next((value for value in graph.inputs if dims(value) == ("batch", TOTAL)), None)
        ids = next((value for value in graph.inputs if dims(value) == ("batch", SEQUENCE)), None)
        choices = [choice for node in graph if (choice := _choice(node)) is not None]
        if mask is None or ids is None or not choices:
            return 0
        strange = next((choice for choice in choices if isinstance(choice, str)), None)
        if strange is not None:
            self.refuse(strange)
            return 0
        found = [choice for choice in choices if isinstance(choice, _Last)]
        op = Builder(model, "last", self.name)
        place = _place(op, mask, ids)
        made = [(one, _picked(op, one, place)) for one in found]
        for value in op.initializers:
            graph.register_initializer(value)
        graph.insert_before(next(iter(graph)), op.nodes)
        for one, new in made:
            old = one.node.outputs[0]
            name, old.name = old.name, f"{old.name}/last-column"
            new.name, new.type = name, old.type
            new.shape = old.shape if one.batched else None  # it has an axis of the rows now
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            graph.remove([one.node], safe=True)
        graph.sort()
        return len(found)


def _choice(node: ir.Node) -> _Last | str | None:
    """Read a choice of the last of the new tokens off a node: None where there is none, or why it cannot be moved.

    trim-rows picks ahead of the last attention: of its queries [batch, heads, sequence, size], of its mask, of the
    positions of its rotary embedding. All of these belong to one token.
    """
    data = node.inputs[0] if node.inputs else None
    shape = dims(data)
    if data is None or not shape or SEQUENCE not in shape or not is_op(node, "Slice", "Gather"):
        return None
    if node.op_type == "Slice":
        starts, ends, axes = (integers(value) for value in (*node.inputs[1:4], None, None)[:3])
        if starts != (-1,) or ends is None or ends[0] < FAR or axes is None or len(axes) != 1:
            return None
        axis, keep = axes[0] % len(shape), True
    else:
        if number(node.inputs[1]) != -1.0:
            return None
        axis, keep = int(attribute(node, "axis") or 0) % len(shape), len(dims(node.inputs[1]) or ()) == 1
    if shape[axis] != SEQUENCE:
        return None
    if len(shape) == 2 and not any(is_op(use.node, "RotaryEmbedding") for use in node.outputs[0].uses()):
        return None  # ids or positions, read for something else than the answer
    batched = shape[0] == "batch"
    missing = 0 if batched else _missing_axes(node, len(shape))
    if (batched and axis == 0) or (not batched and not (keep and (missing or (shape[0] == 1 and axis)))):
        return f"the last token is taken of {data.name} {list(shape)}, which has no place for an axis of the rows"
    return _Last(node, axis, batched, keep, missing)


def _missing_axes(node: ir.Node, rank: int) -> int:
    """Return how many leading axes the users of a value add to it by broadcasting; 0 when they differ."""
    ranks = {len(dims(use.node.outputs[0]) or ()) for use in node.outputs[0].uses()}
    return max(0, ranks.pop() - rank) if len(ranks) == 1 else 0


def _picked(op: Builder, choice: _Last, place: ir.Value) -> ir.Value:
    """Build what takes the last real token of each row.

    Args:
        op: builds the nodes.
        choice: of the last column.
        place: int64 [batch, 1].
    """
    value, axis = choice.node.inputs[0], choice.axis
    assert value is not None  # noqa: S101  # for the type checker; `_choice` looked
    rank = len(dims(value) or ())
    if not choice.batched:  # each row takes its own of what was the same for all
        rows = op.Gather(value, op.Squeeze(place, op.ints([1], f"column_{len(op.nodes)}")), axis=axis)
        if not choice.missing:
            return op.Transpose(rows, perm=_swapped(rank, 0, axis))
        front = op.Transpose(rows, perm=(axis, *(one for one in range(rank) if one != axis)))
        new = (*range(1, choice.missing), choice.missing + axis)
        return op.Unsqueeze(front, op.ints(new, f"axes_{len(op.nodes)}"))
    front = value if axis == 1 else op.Transpose(value, perm=_swapped(rank, 1, axis))
    index = op.Unsqueeze(place, op.ints([2], f"width_{len(op.nodes)}")) if choice.keep or axis > 1 else place
    rows = op.GatherND(front, index, batch_dims=1)
    if axis == 1:
        return rows
    back = op.Transpose(rows, perm=_swapped(rank, 1, axis))
    return back if choice.keep else op.Squeeze(back, op.ints([axis], f"axis_{len(op.nodes)}"))


def _swapped(rank: int, first: int, second: int) -> tuple[int, ...]:
    """Return the axes of a tensor, two of them exchanged."""
    order = list(range(rank))
    order[first], order[second] = second, first
    return tuple(order)


def _place(op: Builder, mask: ir.Value, ids: ir.Value) -> ir.Value:
    """int64 [batch, 1]: the column of the last real one among the new tokens; 0 in a row that has none."""
    real = op.Cast(op.Cast(mask, to=ir.DataType.BOOL.value), to=ir.DataType.INT64.value)
    one = op.ints([1], "one")
    length = op.Shape(ids, start=1, end=2)
    new = op.Slice(real, op.Neg(length), op.ints([ENDLESS], "end"), one)
    columns = op.Range(op.constant(np.array(0), "zero"), op.Squeeze(length), op.constant(np.array(1), "step"))
    return op.ReduceMax(op.Mul(new, columns), one, keepdims=1)
