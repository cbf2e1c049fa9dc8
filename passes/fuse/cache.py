"""Let Attention append new keys and values to those that a cache brings.

Before::

    past_k, k ─ Concat ─┬─────────────────────── present_k
                        ├─ Attention(q, ·, ·, mask) ─ y
    past_v, v ─ Concat ─┴─────────────────────── present_v

After::

    q, k, v, mask, past_k, past_v ─ Attention ─ y, present_k, present_v

Meets: decoders of transformers by every exporter.
Numerics: reassociated; the same products in another order of the runtime's.
Source: ONNX operator Attention-23, inputs past_key and past_value.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from onnxopt.graph import ancestors, attribute, dims, is_op
from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated

PRESENT = 3  # outputs of Attention: y, present_key, present_value


class _Appended(NamedTuple):
    """Concat(past, new) along the positions."""

    past: ir.Value
    new: ir.Value
    all: ir.Value


@register
class FuseCache(Pass):
    """Attention(q, Concat(past_k, k), Concat(past_v, v), mask)  →  Attention(q, k, v, mask, past_k, past_v)."""

    name = "fuse-cache"
    min_opset = 23
    numerics = Reassociated(rtol=1e-5, atol=1e-6)
    enables = ("lower-cached-attention",)
    touches_padding = True  # a query that may see nothing gets another answer of no meaning

    def run(self, model: ir.Model) -> int:
        """Rewrite every attention whose keys and values both grow out of a cache; return how many."""
        if model.opset_imports.get("", 0) < self.min_opset:
            return 0
        done = 0
        for node in list(model.graph):
            if not is_op(node, "Attention") or len(node.inputs) > 4 or len(node.outputs) > 1:
                continue
            keys, values = _appended(node.inputs[1]), _appended(node.inputs[2])
            if keys is None or values is None or keys.all is values.all or "q_num_heads" in node.attributes:
                continue
            # a causal attention without a past counts its queries from the first key on, one with a past behind it
            if attribute(node, "is_causal") or _waits_for(node, keys, values):
                continue
            _rewrite(model.graph, node, keys, values)
            done += 1
        if done:
            model.graph.sort()  # somebody may read the present ahead of the attention
        return done


def _appended(value: ir.Value | None) -> _Appended | None:
    """Return the parts of keys or values that are a Concat of two along the third of four axes."""
    node = value.producer() if value is not None else None
    if node is None or value is None or not is_op(node, "Concat") or len(node.inputs) != 2:
        return None
    past, new = node.inputs
    if past is None or new is None or attribute(node, "axis") not in (2, -2) or not past.is_graph_input():
        return None
    shapes = dims(past), dims(new)
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return None
    return _Appended(past, new, value)


def _waits_for(node: ir.Node, *parts: _Appended) -> bool:
    """Tell whether what an attention takes hangs on the joined keys or values, which it is to give."""
    joins = {part.all.producer() for part in parts}
    taken = (node.inputs[0], *node.inputs[3:], *(part.new for part in parts))
    return any(not joins.isdisjoint(ancestors(value)[0]) for value in taken if value is not None)


def _rewrite(graph: ir.Graph, node: ir.Node, keys: _Appended, values: _Appended) -> None:
    """Put one node with three outputs in place of an attention and its two Concats."""
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    inputs = [node.inputs[0], keys.new, values.new, mask, keys.past, values.past]
    given = {name: attr.value for name, attr in node.attributes.items()}
    made = ir.node("Attention", inputs, given, num_outputs=PRESENT, name=node.name)
    graph.insert_before(node, [made])
    for old, new in zip((node.outputs[0], keys.all, values.all), made.outputs, strict=True):
        name, old.name = old.name, f"{old.name}/before-cache"
        new.name, new.shape, new.type = name, old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove([node], safe=True)
    for part in (keys.all, values.all):
        producer = part.producer()
        if producer is not None and not part.uses():
            graph.remove([producer], safe=True)
