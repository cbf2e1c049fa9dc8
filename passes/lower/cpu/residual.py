"""Add a residual inside the Gemm in front of it, and send its bias ahead through the normalization.

Before::

    h = LayerNormalization(…, β)
    h ─ … ─ Gemm(W, b) ─ Add(h) ─ LayerNormalization          h ─ Gemm(V, c)

After::

    h' = LayerNormalization(…, β + b)
    h' ─ … ─ Gemm(W, h') ─ LayerNormalization                 h' ─ Gemm(V, c − b V)

Meets: post-norm encoders (BERT, MiniLM, RoBERTa, DistilBERT), where the residual is the output of a normalization whose
    other readers are linear layers.
Numerics: reassociated. The identity is exact in real numbers; one addition moves before the product.
Source: x W + b + h = x W + (h + b), and (h + b) V + (c − b V) = h V + c. The kernel adds its third operand while it
    writes the product, so the separate pass over the activations goes away.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.graph import CONTRIB, PASS_KEY, attribute, constant, dims, is_constant, is_op, remove_dead
from onnxopt.rewrite import AS_IS, Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Array, Reassociated


@register
class FoldResidual(Pass):
    """Gemm(x, W, b) + h  →  Gemm(x, W, h + b), with h + b computed by the normalization that makes h."""

    name = "fold-residual"
    numerics = Reassociated(rtol=5e-5, atol=1e-5)
    forms = ("in the Gemm", AS_IS)

    def run(self, model: ir.Model) -> int:
        """Fold every residual that allows it; returns how many."""
        return sum(_fold(model, node) for node in list(model.graph) if node.graph is not None and is_op(node, "Add"))


def _fold(model: ir.Model, add: ir.Node) -> int:
    for index in (0, 1):
        branch, residual = add.inputs[index], add.inputs[1 - index]
        gemm = branch.producer() if branch is not None else None
        if gemm is None or residual is None or branch is None or not _plain_gemm(gemm) or len(branch.uses()) != 1:
            continue
        if branch.is_graph_output() or dims(branch) != dims(residual) or len(dims(branch) or ()) != 2:
            continue
        bias = constant(gemm.inputs[2]) if len(gemm.inputs) > 2 else None
        norm = _source_norm(residual)
        if bias is None or bias.ndim != 1 or norm is None:
            continue
        readers = _linear_readers(norm.outputs[0], add)
        if readers is None or gemm in readers:  # a layer that reads h itself has no constant bias left to correct
            continue
        if not _same_width(bias, norm, readers):
            continue
        _shift(model, norm, 2, bias.astype(np.float64))
        norm.outputs[
            0
        ].name = f"{norm.outputs[0].name}/shifted"  # it is another tensor now; its old name would mislead a comparison
        for reader in readers:
            weight = constant(reader.inputs[1])
            if weight is not None:
                _shift(model, reader, 2, -(bias.astype(np.float64) @ weight.astype(np.float64)))
        gemm.replace_input_with(2, residual)
        gemm.metadata_props[PASS_KEY] = FoldResidual.name
        old, new = add.outputs[0], branch
        name, kind, shape = old.name, old.type, old.shape
        add.graph.remove(gemm)  # type: ignore[union-attr]  # both are in the main graph
        add.graph.insert_before(add, [gemm])  # type: ignore[union-attr]  # the residual may be made after the old place
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = f"{name}/replaced"
        new.name, new.type, new.shape = name, kind, shape
        remove_dead([add])
        return 1
    return 0


def _plain_gemm(node: ir.Node) -> bool:
    return (
        is_op(node, "Gemm")
        and is_constant(node.inputs[1])
        and attribute(node, "alpha") == 1.0
        and attribute(node, "beta") == 1.0
        and not attribute(node, "transA")
        and not attribute(node, "transB")
    )


def _source_norm(value: ir.Value) -> ir.Node | None:
    """Return the LayerNormalization that makes a value, seen through a Reshape."""
    node = value.producer()
    if is_op(node, "Reshape") and node is not None and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or not is_op(node, "LayerNormalization") or len(node.inputs) < 3 or not is_constant(node.inputs[2]):
        return None
    return node


def _linear_readers(value: ir.Value, residual: ir.Node) -> list[ir.Node] | None:
    """Return the linear layers that read a value besides one residual addition; None when anything else reads it."""
    if value.is_graph_output():
        return None
    readers: list[ir.Node] = []
    for use in value.uses():
        node = use.node
        if node is residual:
            continue
        if is_op(node, "Reshape") and use.idx == 0:
            inner = _linear_readers(node.outputs[0], residual)
            if inner is None:
                return None
            readers.extend(inner)
        elif is_op(node, "Shape"):
            continue
        elif (
            use.idx == 0
            and (_plain_gemm(node) or is_op(node, "Attention", domain=CONTRIB))
            and _has_constant_bias(node)
        ):
            readers.append(node)
        else:
            return None
    return readers


def _same_width(bias: Array, norm: ir.Node, readers: list[ir.Node]) -> bool:
    """Tell whether b, β and the rows of every V are as long as one another; a Reshape may have cut the last axis."""
    heights = [(dims(reader.inputs[1]) or (None,))[0] for reader in readers]
    return dims(norm.inputs[2]) == bias.shape and all(height == bias.size for height in heights)


def _has_constant_bias(node: ir.Node) -> bool:
    if len(node.inputs) < 3 or not is_constant(node.inputs[1]) or not is_constant(node.inputs[2]):
        return False
    return dims(node.inputs[2]) == (dims(node.inputs[1]) or (None,))[1:]


def _shift(model: ir.Model, node: ir.Node, index: int, by: Array) -> None:
    """Replace a constant vector input by itself plus `by`, computed in float64."""
    old = node.inputs[index]
    before = constant(old)
    if old is None or before is None:
        raise ValueError(f"{node.name}: input {index} is not constant")
    name = f"{old.name}/{FoldResidual.name}/{node.outputs[0].name}"
    tensor = ir.tensor((before.astype(np.float64) + by).astype(before.dtype), name=name)
    value = ir.Value(name=name, type=old.type, shape=old.shape, const_value=tensor)
    model.graph.register_initializer(value)
    node.replace_input_with(index, value)
