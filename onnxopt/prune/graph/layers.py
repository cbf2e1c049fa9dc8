"""Take whole layers out of a graph: what goes into an attention block goes on to the next one instead.

A layer begins at the last value that everything behind it depends on alone (a cut of the graph) before an attention,
and ends where the next one begins. Nothing here knows how a layer is built inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.errors import InputError
from onnxopt.graph import is_constant, is_op, remove_dead
from onnxopt.probe.runners import GraphRunner
from onnxopt.prune.checkpoint.network import Pruned
from onnxopt.prune.spec import PruneSpec
from onnxopt.sizes.derive import same_shape
from onnxopt.spec import Array, Feeds, Say


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        enters: the value that it changes.
        leaves: the value that it makes of it.
    """

    enters: ir.Value
    leaves: ir.Value


def find_layers(model: ir.Model) -> list[Layer]:
    """Return the layers of a sorted graph, in order; the last is left out when it does not keep the shape."""
    nodes = [node for node in model.graph if any(_is_data(value) for value in node.outputs)]
    data = _depends_on_tables(nodes)
    order = [node for node in nodes if node.outputs[0] in data]
    cuts = _cuts(model, order, data)
    places = [index for index, node in enumerate(order) if is_op(node, "Attention")]
    entries: list[int] = []
    for place in places:
        before = [index for index in cuts if index < place]
        if before and (not entries or before[-1] > entries[-1]):
            entries.append(before[-1])
    if len(entries) < 2:
        return []
    step = entries[-1] - entries[-2]
    ends = [*entries[1:], *([entries[-1] + step] if entries[-1] + step in cuts else [])]
    layers = [Layer(order[start].outputs[0], order[end].outputs[0]) for start, end in zip(entries, ends, strict=False)]
    return [layer for layer in layers if same_shape(layer.enters, layer.leaves)]


def _is_data(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _depends_on_tables(nodes: Sequence[ir.Node]) -> set[ir.Value]:
    """Return the values made from rows of a table or from pixels: those that layers work on."""
    data: set[ir.Value] = set()
    for node in nodes:
        rooted = is_op(node, "Gather") and is_constant(node.inputs[0])
        rooted |= is_op(node, "Conv") or any(value in data for value in node.inputs)
        if rooted:
            data.update(value for value in node.outputs if _is_data(value))
    return data


def _cuts(model: ir.Model, order: Sequence[ir.Node], data: set[ir.Value]) -> set[int]:
    """Return the places in `order` after which a single value is still needed: the output of the node there."""
    members = set(order)
    left = {value: sum(1 for use in value.uses() if use.node in members) for value in data}
    outputs = set(model.graph.outputs)
    live: set[ir.Value] = set()
    found: set[int] = set()
    for index, node in enumerate(order):
        for value in node.inputs:
            if value in live and value is not None:
                left[value] -= 1
                if left[value] == 0 and value not in outputs:
                    live.discard(value)
        live.update(value for value in node.outputs if value in data and (left[value] or value in outputs))
        if live == {node.outputs[0]}:
            found.add(index)
    return found


def drop_layers(model: ir.Model, spec: PruneSpec, batches: Sequence[Feeds], say: Say) -> Pruned:
    """Take the least important layers out of a graph.

    Raises:
        InputError: when there are none, too many would go, or the graph keeps a cache of each.
    """
    if any("past" in (value.name or "") for value in model.graph.inputs):
        raise InputError(
            "the graph's cache has an entry for every layer",
            where="--prune layers",
            hint="give the checkpoint, whose layers can go before it is exported, or export it with --no-cache",
        )
    layers = find_layers(model)
    count = len(layers)
    wanted = spec.amounts["layers"].of(count)
    if not 0 < wanted < max(count, 1):
        raise InputError(f"{wanted} of {count} layers cannot go", where="--prune layers")
    changes: list[float] = []
    if spec.layer_order == "last":
        gone = list(range(count - wanted, count))
    elif spec.layer_order == "random":
        gone = sorted(np.random.default_rng(spec.seed).choice(count, size=wanted, replace=False).tolist())
    else:
        say("how much each layer changes")
        changes = _changes(model, layers, batches)
        gone = sorted(sorted(range(count), key=lambda index: changes[index])[:wanted])
    dead: list[ir.Node] = []
    for index in reversed(gone):  # from behind, so that what replaces a value is never itself replaced
        layer = layers[index]
        producer = layer.leaves.producer()
        dead += [producer] if producer is not None else []
        _bridge(model, layer)
    remove_dead(dead)
    shown = ", ".join(f"{index} ({changes[index]:.3f})" if changes else str(index) for index in gone)
    return Pruned("layers", "graph", count, count - wanted, note=f"gone: {shown}")


def _bridge(model: ir.Model, layer: Layer) -> None:
    """Let what reads the end of a layer read its beginning; an output of the graph keeps its name."""
    old, anchor = layer.leaves, layer.leaves.producer()
    if not old.is_graph_output() or anchor is None:
        old.replace_all_uses_with(layer.enters)
        return
    name = old.name
    keep = ir.node("Identity", [layer.enters], name=f"{name}/keep")
    model.graph.insert_before(anchor, [keep])
    taken = keep.outputs[0]
    taken.type, taken.shape = old.type, old.shape
    old.replace_all_uses_with(taken, replace_graph_outputs=True)
    old.name = f"{name}/replaced"
    taken.name = name


def _changes(model: ir.Model, layers: Sequence[Layer], batches: Sequence[Feeds]) -> list[float]:
    """Return 1 − mean cosine of what enters and what leaves each layer (Men et al. 2024, arXiv:2403.03853, eq. 1)."""
    runner = GraphRunner(model, [value for one in layers for value in (one.enters, one.leaves)], with_outputs=False)
    sums, count = np.zeros(len(layers)), 0
    for feeds in batches:
        values = runner.run(feeds)[1]
        for index, layer in enumerate(layers):
            before, after = (_rows(values[one], feeds) for one in (layer.enters, layer.leaves))
            scale = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
            cosine = (before * after).sum(axis=-1) / np.maximum(scale, 1e-12)
            sums[index] += float((1 - cosine).sum())
        count += len(before)
    return list(sums / max(count, 1))


def _rows(array: Array, feeds: Feeds) -> Array:
    rows = array.reshape(-1, array.shape[-1])
    mask = feeds.get("attention_mask")
    return rows if mask is None or mask.size != len(rows) else rows[mask.reshape(-1).astype(bool)]
