"""Keep one copy of equal weights, also when one is the transpose of the other.

Before::

    ids ─ Gather(E) …… MatMul(Eᵀ) ─ logits        E and Eᵀ both stored

After::

    ids ─ Gather(E) …… MatMul(Transpose(E)) ─ logits

Meets: tied embeddings of decoders, exporters that repeat small constants.
Numerics: exact.
Source: Press & Wolf 2017, arXiv:1608.05859 (tied embeddings). ONNX Runtime folds the Transpose when it loads the file,
    so only the file gets smaller; above one mebibyte, up to which constants are folded, that is worth a node.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.graph import PASS_KEY
from onnxopt.graph.weight_files import elements
from onnxopt.probe.expression import Tensors
from onnxopt.probe.memory import release_pages
from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Exact

TIE_BYTES = 2**20
ROWS = 1024  # of a table that are compared at a time


@register
class MergeInitializers(Pass):
    """w, w  →  w;  w, wᵀ  →  w, Transpose(w)."""

    name = "merge-initializers"
    numerics = Exact()

    def run(self, model: ir.Model) -> int:
        """Merge; returns how many initializers are gone."""
        before = sum(len(graph.initializers) for graph in model.graphs())
        tensors = Tensors()
        for graph in model.graphs():
            _merge_equal(graph, tensors)
        _tie_transposed(model)
        return before - sum(len(graph.initializers) for graph in model.graphs())


def _merge_equal(graph: ir.Graph, tensors: Tensors) -> None:
    """Let one of several equal constants serve the readers of all; what is an input or an output stays."""
    first: dict[int, ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output() or tensor.dtype == ir.DataType.STRING:
            continue
        kept = first.setdefault(tensors.number(tensor), value)
        if kept is not value:
            value.replace_all_uses_with(kept)
            graph.initializers.pop(name)


def _stored_shape(value: ir.Value) -> tuple[int, ...]:
    tensor = value.const_value
    return () if tensor is None else tuple(int(dim) for dim in tensor.shape)  # type: ignore[arg-type]  # a tensor's


def _tie_transposed(model: ir.Model) -> None:
    """Replace each large matrix that is the transpose of another by a Transpose of it; the embedding table is kept."""
    matrices = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and len(value.const_value.shape) == 2
        and value.const_value.nbytes > TIE_BYTES
        and not value.is_graph_input()
        and not value.is_graph_output()
    ]
    sizes: dict[tuple[int, ...], list[ir.Value]] = {}
    for value in matrices:
        sizes.setdefault(_stored_shape(value), []).append(value)
    gone: set[ir.Value] = set()
    for value in matrices:
        if value in gone or not _is_table(value):
            continue
        rows, columns = _stored_shape(value)
        for other in sizes.get((columns, rows), []):
            if other is value or other in gone or other.dtype != value.dtype or _is_table(other):
                continue
            if _are_transposed(value, other):
                _replace_by_transpose(model, value, other)
                gone.add(other)


def _is_table(value: ir.Value) -> bool:
    return any(use.node.op_type == "Gather" and use.idx == 0 for use in value.uses())


def _are_transposed(table: ir.Value, other: ir.Value) -> bool:
    """Compare two matrices bit by bit, one of them turned, some rows at a time."""
    first, second = table.const_value, other.const_value
    if first is None or second is None:
        return False
    (rows, columns), turned = _stored_shape(table), second.numpy()
    bits = np.dtype(f"u{first.dtype.numpy().itemsize}")
    same = all(
        np.array_equal(
            elements(first, start * columns, (start + ROWS) * columns).view(bits).reshape(-1, columns),
            np.asarray(turned[:, start : start + ROWS], order="C").view(bits).T,
        )
        for start in range(0, rows, ROWS)
    )
    release_pages([first, second])
    return same


def _replace_by_transpose(model: ir.Model, table: ir.Value, copy: ir.Value) -> None:
    name = copy.name or ""
    node = ir.node("Transpose", [table], {"perm": [1, 0]}, name=f"{name}/tied")
    node.metadata_props[PASS_KEY] = MergeInitializers.name
    node.outputs[0].name = f"{name}_tied"
    node.outputs[0].type, node.outputs[0].shape = copy.type, copy.shape
    first = next(iter(model.graph))
    model.graph.insert_before(first, [node])
    copy.replace_all_uses_with(node.outputs[0])
    model.graph.initializers.pop(name)
