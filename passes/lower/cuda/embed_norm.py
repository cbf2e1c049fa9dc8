"""Look up all embeddings of a text, add them and normalize them in one kernel.

Before::

    ids ─ Gather(words) ─┐
    types ─ Gather(segments) ─ Add ─ Add ─ LayerNormalization(γ, β) ─ y
    positions[: sequence] ───────────┘

After::

    ids, types ─ Cast(int32) ─ com.microsoft.EmbedLayerNormalization(words, positions, segments, γ, β) ─ y

Meets: BERT and its kin, on CUDA: tables in any order of addition; positions that are the columns, or looked up too.
Numerics: reassociated.
Source: ONNX Runtime contrib operator EmbedLayerNormalization: one launch instead of six. On the CPU it is slower than
    its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import CONTRIB, attribute, constant, dims, integers, is_constant, is_op, rank, remove_dead
from onnxopt.rewrite import AS_IS, Builder, Pass
from onnxopt.rewrite.registry import register
from onnxopt.sizes.derive import same_shape
from onnxopt.spec import Reassociated

MOST_TABLES = 3
KERNEL = "EmbedLayerNormalization"
_EPSILON = 1e-5  # of LayerNormalization, when it does not say
INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


@dataclass(frozen=True)
class _Lookup:
    """One summand: rows of a table, by ids [batch, sequence]; by the column where `ids` is None."""

    table: ir.Value
    ids: ir.Value | None


@register
class LowerEmbedNorm(Pass):
    """LayerNormalization(words[ids] + segments[types] + positions)  →  com.microsoft.EmbedLayerNormalization."""

    name = "lower-embed-norm"
    numerics = Reassociated(rtol=2e-5, atol=5e-6)
    forms = (KERNEL, AS_IS)

    def run(self, model: ir.Model) -> int:
        """Lower every such norm; returns how many."""
        return sum(_lower(model, node) for node in list(model.graph) if is_op(node, "LayerNormalization"))


def _lower(model: ir.Model, norm: ir.Node) -> int:
    total = norm.inputs[0]
    scales = norm.inputs[1:]
    axis = attribute(norm, "axis")
    if total is None or rank(total) != 3 or axis not in (-1, 2, None) or total.dtype != ir.DataType.FLOAT:
        return 0
    if len(scales) != 2 or not all(is_constant(value) and rank(value) == 1 for value in scales):
        return 0
    summands = list(_summands(total))
    found = [one for value in summands if (one := _lookup(value)) is not None]
    if len(found) != len(summands) or not 2 <= len(found) <= MOST_TABLES:
        return 0
    columns = [one for one in found if one.ids is None]
    tables = [one for one in found if one.ids is not None]
    alike = all(
        one.ids is not None and same_shape(one.ids, tables[0].ids) for one in tables if tables[0].ids is not None
    )
    if len(columns) > 1 or not tables or not alike or len(tables) == MOST_TABLES:
        return 0
    words, *others = tables
    op = Builder(model, norm.name or norm.outputs[0].name or KERNEL, LowerEmbedNorm.name)
    casts: dict[ir.Value, ir.Value] = {}

    def narrow(value: ir.Value | None) -> ir.Value | None:
        if value is None or value.dtype == ir.DataType.INT32:
            return value
        if value not in casts:
            casts[value] = op.Cast(value, to=ir.DataType.INT32.value)
        return casts[value]

    segments = others[0] if columns and others else None
    position = columns[0] if columns else others[0]
    places = _matrix(op, position.table)
    epsilon = attribute(norm, "epsilon")
    inputs = [
        narrow(words.ids),
        narrow(segments.ids) if segments is not None else None,
        words.table,
        places,
        segments.table if segments is not None else None,
        *scales,
        None,
        narrow(position.ids),
    ]
    attributes = {"epsilon": _EPSILON if epsilon is None else epsilon}
    # the second output, the lengths of rows padded on the right, must be there; nobody reads it
    made = op.node(KERNEL, inputs, attributes, domain=CONTRIB, outputs=2)[0]
    _replace(model, norm, op, made)
    return 1


def _summands(value: ir.Value) -> Iterator[ir.Value]:
    """Yield what a tree of additions adds that nobody else reads."""
    producer = value.producer()
    if producer is None or not is_op(producer, "Add") or len(value.uses()) != 1 or value.is_graph_output():
        yield value
        return
    for one in producer.inputs:
        if one is not None:
            yield from _summands(one)


def _lookup(value: ir.Value) -> _Lookup | None:
    producer = value.producer()
    if producer is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    table = producer.inputs[0]
    if table is None or not is_constant(table):
        return None
    if is_op(producer, "Gather") and rank(table) == 2 and attribute(producer, "axis") in (0, None):
        ids = producer.inputs[1]
        fits = ids is not None and rank(ids) == 2 and ids.dtype in INTEGERS and not is_constant(ids)
        return _Lookup(table, ids) if fits else None
    if is_op(producer, "Slice") and rank(table) == 3 and (dims(table) or (0,))[0] == 1:
        starts, _, axes = (integers(one) for one in producer.inputs[1:4])
        steps = integers(producer.inputs[4]) if len(producer.inputs) > 4 else (1,)
        columns = (dims(value) or (None, None))[1] == "sequence"
        return _Lookup(table, None) if starts == (0,) and axes in ((1,), (-2,)) and steps == (1,) and columns else None
    return None


def _matrix(op: Builder, table: ir.Value) -> ir.Value:
    """Return a table [rows, width] of one that may have an axis of 1 in front."""
    if rank(table) == 2:
        return table
    array = constant(table)
    if array is None:
        raise ValueError(f"{table.name} is no constant")
    return op.constant(np.ascontiguousarray(array[0]), "positions")


def _replace(model: ir.Model, norm: ir.Node, op: Builder, made: ir.Value) -> None:
    """Put the kernel where the norm was."""
    for value in op.initializers:
        model.graph.register_initializer(value)
    model.graph.insert_before(norm, op.nodes)
    old = norm.outputs[0]
    name, kind, shape = old.name, old.type, old.shape
    old.replace_all_uses_with(made, replace_graph_outputs=True)
    old.name = f"{name}/replaced"
    made.name, made.type, made.shape = name, kind, shape
    remove_dead([norm])
