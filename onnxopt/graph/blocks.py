"""Count the blocks of a graph that a good form has one operator for, and how many of them have it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph.by_length import PROMPT
from onnxopt.graph.nodes import CONTRIB, all_nodes, is_op
from onnxopt.graph.values import is_constant, number

KINDS = ("attention", "layer_norm", "rms_norm", "gelu", "linear")

_FUSED: dict[str, tuple[tuple[str, str], ...]] = {
    "attention": (
        ("", "Attention"),
        (CONTRIB, "Attention"),
        (CONTRIB, "MultiHeadAttention"),
        (CONTRIB, "GroupQueryAttention"),
        (CONTRIB, "PackedAttention"),
        (CONTRIB, "PackedMultiHeadAttention"),
        (CONTRIB, "QAttention"),
    ),
    "layer_norm": (
        ("", "LayerNormalization"),
        (CONTRIB, "SkipLayerNormalization"),
        (CONTRIB, "EmbedLayerNormalization"),
    ),
    "rms_norm": (
        ("", "RMSNormalization"),
        ("", "SimplifiedLayerNormalization"),
        (CONTRIB, "SimplifiedLayerNormalization"),
        (CONTRIB, "SkipSimplifiedLayerNormalization"),
    ),
    "gelu": (("", "Gelu"), (CONTRIB, "Gelu"), (CONTRIB, "BiasGelu"), (CONTRIB, "FastGelu")),
}


@dataclass(frozen=True)
class Count:
    """How many blocks of one kind are one operator, of how many.

    Attributes:
        fused: blocks that are one operator.
        total: fused ones and those still spelled out.
        missed: the first node of each block still spelled out.
    """

    fused: int
    total: int
    missed: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.fused} of {self.total}"


def count_blocks(model: ir.Model) -> dict[str, Count]:
    """Return the count of every kind; a linear is any product with a constant matrix and always counts as fused."""
    nodes = [node for node in all_nodes(model) if node.graph is None or node.graph.name != PROMPT]  # the same once more
    fused = dict.fromkeys(KINDS, 0)
    missed: dict[str, list[str]] = {kind: [] for kind in KINDS}
    packed = 0
    for node in nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        for kind, operators in _FUSED.items():
            if (domain, node.op_type) in operators:
                fused[kind] += 1
                packed += kind == "attention" and domain == CONTRIB and node.op_type in ("Attention", "QAttention")
        for kind, is_root in _SPELLED.items():
            if is_root(node):
                missed[kind].append(node.name or node.op_type)
        if _is_linear(node):
            fused["linear"] += 1
    fused["linear"] += packed  # these kernels carry the projection of queries, keys and values inside
    return {kind: Count(fused[kind], fused[kind] + len(missed[kind]), tuple(missed[kind])) for kind in KINDS}


def _is_linear(node: ir.Node) -> bool:
    return (
        node.op_type
        in (
            "MatMul",
            "Gemm",
            "FusedMatMul",
            "MatMulInteger",
            "MatMulIntegerToFloat",
            "DynamicQuantizeMatMul",
            "MatMulNBits",
        )
        and len(node.inputs) > 1
        and any(is_constant(value) for value in node.inputs[1:2])
    )


_PASSING = ("Where", "Cast", "Dropout", "Reshape", "Slice", "Identity")


def _attention_root(node: ir.Node) -> bool:
    """A Softmax between two products."""
    if not is_op(node, "Softmax"):
        return False
    return _goes_to(node.outputs[0], "MatMul", depth=3) and _comes_from(node.inputs[0], "MatMul", depth=8)


def _goes_to(value: ir.Value, op_type: str, depth: int) -> bool:
    """Tell whether a value reaches an operator through nodes that only guard, cut or reshape it."""
    users = [use.node for use in value.uses()]
    if any(user.op_type == op_type for user in users):
        return True
    return depth > 0 and any(
        _goes_to(user.outputs[0], op_type, depth - 1) for user in users if user.op_type in _PASSING
    )


def _comes_from(value: ir.Value | None, op_type: str, depth: int) -> bool:
    node = value.producer() if value is not None else None
    if node is None or depth == 0:
        return False
    return node.op_type == op_type or any(_comes_from(parent, op_type, depth - 1) for parent in node.inputs)


def _norm_root(node: ir.Node, *, centred: bool) -> bool:
    """A root of a mean of squares plus a small constant; centred when the squares are of differences to a mean."""
    root = is_op(node, "Sqrt") or (is_op(node, "Pow") and abs(number(node.inputs[1]) or 0) == 0.5)
    if not root or node.inputs[0] is None:
        return False
    added = node.inputs[0].producer()
    if added is None or not is_op(added, "Add"):
        return False
    mean = next((p for v in added.inputs if v is not None and is_op(p := v.producer(), "ReduceMean")), None)
    if mean is None or mean.inputs[0] is None:
        return False
    square = mean.inputs[0].producer()
    if square is None or not (is_op(square, "Mul") or (is_op(square, "Pow") and number(square.inputs[1]) == 2.0)):
        return False
    base = square.inputs[0]
    return centred == (base is not None and is_op(base.producer(), "Sub"))


def _gelu_root(node: ir.Node) -> bool:
    """An erf, or a tanh over the cubic of the approximation."""
    if is_op(node, "Erf"):
        return True
    return is_op(node, "Tanh") and _has_scalar(node.inputs[0], 0.044715, depth=5)


def _has_scalar(value: ir.Value | None, wanted: float, depth: int) -> bool:
    node = value.producer() if value is not None else None
    if node is None or depth == 0:
        return False
    if any((found := number(v)) is not None and math.isclose(found, wanted, rel_tol=1e-4) for v in node.inputs):
        return True
    return any(_has_scalar(parent, wanted, depth - 1) for parent in node.inputs)


_SPELLED: dict[str, Callable[[ir.Node], bool]] = {
    "attention": _attention_root,
    "layer_norm": lambda node: _norm_root(node, centred=True),
    "rms_norm": lambda node: _norm_root(node, centred=False),
    "gelu": _gelu_root,
}
