"""Let a decoder answer for the last real token of a row, wherever its padding lies.

Before::

    x [batch, sequence, width] ─ Slice(-1) ─ … ─ logits

After::

    attention_mask ─ Cast(bool) ─ Slice(new tokens) ─ Mul(columns) ─ ReduceMax ─┐
    x ──────────────────────────────────────────────────────────────────────────┴─ GatherND ─ … ─ logits

Meets: decoders with a cache whose logits are those of the last position, after trim-rows; the CPU's own form of them
    packs rows and needs none of it.
Numerics: exact. Where the last column is a real token it is the same row. Where it is padding, it was nobody's answer.
Source: Hugging Face tokenizers pad on the right unless told otherwise, and so does onnxruntime-genai in a batch.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.cache import SEQUENCE, TOTAL
from onnxopt.graph import dims
from onnxopt.passes.lower.cpu.cached_attention import ENDLESS, takes_last
from onnxopt.rewrite import Builder, Exact, Pass, register


@register
class LowerLastToken(Pass):
    """x[:, -1]  →  x[:, place of the last real token]."""

    name = "lower-last-token"
    min_opset = 18
    numerics = Exact()
    touches_padding = True

    def run(self, model: ir.Model) -> int:
        """Replace every choice of the last position of new tokens; return how many."""
        graph = model.graph
        mask = next((value for value in graph.inputs if dims(value) == ("batch", TOTAL)), None)
        ids = next((value for value in graph.inputs if dims(value) == ("batch", SEQUENCE)), None)
        found = [(node, keep) for node in graph if (keep := takes_last(node)) is not None]
        if mask is None or ids is None or not found:
            return 0
        op = Builder(model, "last", self.name)
        place = _place(op, mask, ids)
        wide = op.Unsqueeze(place, op.ints([2], "width"))
        made = []
        for node, keep in found:
            new = op.GatherND(node.inputs[0], wide if keep else place, batch_dims=1)
            made.append((node, new))
        for value in op.initializers:
            graph.register_initializer(value)
        graph.insert_before(next(iter(graph)), op.nodes)
        for node, new in made:
            old = node.outputs[0]
            name, old.name = old.name, f"{old.name}/last-column"
            new.name, new.shape, new.type = name, old.shape, old.type
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            graph.remove([node], safe=True)
        graph.sort()
        return len(found)


def _place(op: Builder, mask: ir.Value, ids: ir.Value) -> ir.Value:
    """int64 [batch, 1]: the column of the last real one among the new tokens; 0 in a row that has none."""
    real = op.Cast(op.Cast(mask, to=ir.DataType.BOOL.value), to=ir.DataType.INT64.value)
    one = op.ints([1], "one")
    length = op.Shape(ids, start=1, end=2)
    new = op.Slice(real, op.Neg(length), op.ints([ENDLESS], "end"), one)
    columns = op.Range(op.constant(np.array(0), "zero"), op.Squeeze(length), op.constant(np.array(1), "step"))
    return op.ReduceMax(op.Mul(new, columns), one, keepdims=1)
