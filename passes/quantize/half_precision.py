"""Store and compute in 16 bits what may be, with a Cast where 16 and 32 bits meet.

Before::

    x ─ MatMul(W) ─ SkipLayerNormalization(h, γ, β) ─ ReduceSum ─ y                  all float32

After::

    x ─ Cast(fp16) ─ MatMul(W) ─ SkipLayerNormalization(h, γ, β) ─ Cast(float32) ─ ReduceSum ─ y

Meets: graphs that are lowered for CUDA or TensorRT. The plan names the kind and the nodes that stay in float32 because
    of what was seen in them. What sums over an axis without a limit (means, softmax, products of two activations along
    the sequence) stays there always; what only moves data follows the node that made it. A branch or a loop keeps
    float32 inside, and what it reads from outside gets a Cast.
Numerics: lossy. fp16 has 11 bits and ends at 65,504, bf16 has 8 bits and the range of float32. Finite literals beyond
    that range, such as the -3.4e38 of a mask, become the largest number of their sign.
Source: the kernels with half types of ONNX Runtime's CUDA provider; those of its own norms and attentions keep their
    statistics in float32 (SkipLayerNormalization with `enable_skip_layer_norm_strict_mode`, which a session of ours
    sets).
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxopt.graph import CONTRIB, PASS_KEY, STANDARD_DOMAINS, constant, dims, has_subgraph, is_constant, is_op
from onnxopt.graph.weight_files import tensor_of
from onnxopt.qmath.precision import HALF_KINDS, HalfKind, HalfPlan
from onnxopt.rewrite import Pass
from onnxopt.rewrite.registry import register
from onnxopt.spec import Array, Lossy

DTYPES: dict[HalfKind, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
FLOAT = ir.DataType.FLOAT

_BOTH: frozenset[HalfKind] = frozenset(HALF_KINDS)
_FP16: frozenset[HalfKind] = frozenset({"fp16"})

# Move data and do not compute: they stay in the type that their input has.
MOVES = frozenset(
    {
        *("Reshape", "Transpose", "Concat", "Split", "Slice", "Expand", "Unsqueeze", "Squeeze", "Gather", "Identity"),
        *("GatherND", "GatherElements", "Where", "Flatten", "Tile", "ScatterElements", "ScatterND"),
    }
)
# Operators whose kernels take 16 bits, and which. All others stay in float32: Softmax, ReduceSum, Pow, Sqrt, Exp, ...
STANDARD: dict[str, frozenset[HalfKind]] = {
    **dict.fromkeys(("MatMul", "Gemm", "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Relu", "Sigmoid", "Tanh"), _BOTH),
    **dict.fromkeys(("Erf", "Gelu", "LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"), _BOTH),
    **dict.fromkeys(("Attention", "RotaryEmbedding"), _BOTH),
    **dict.fromkeys(("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "LeakyRelu"), _FP16),
    **dict.fromkeys(("Clip", "Min", "Max", "Sum", "BatchNormalization", "InstanceNormalization"), _FP16),
}
OWN: dict[str, frozenset[HalfKind]] = {
    **dict.fromkeys(("Attention", "MultiHeadAttention", "GroupQueryAttention", "RotaryEmbedding"), _BOTH),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "FusedMatMul"), _BOTH),
    **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "MatMulNBits"), _BOTH),
    "EmbedLayerNormalization": _FP16,
}
# Inputs that a kernel wants in float32 whatever the others are.
WIDE_INPUTS = {"GroupQueryAttention": (12, 13)}  # scales of a cache in 8 bits
ANY_TYPE = ("Shape", "Size", "Cast", "IsNaN", "IsInf")  # readers of every type


@register
class HalfPrecision(Pass):
    """f(x) in float32  →  f(x) in fp16 or bf16.

    Args:
        plan: the kind, and what stays; without one nothing changes.
    """

    name = "half-precision"
    numerics = Lossy("sqnr_db", 20.0)
    behind_lowering = True
    makes_weights = True

    def __init__(self, plan: HalfPlan | None = None) -> None:
        super().__init__()
        self.plan = plan
        self.clamped: list[str] = []  # literals beyond the range, of the last run

    def run(self, model: ir.Model) -> int:
        """Return how many nodes compute in 16 bits now."""
        self.clamped.clear()
        if self.plan is None:
            return 0
        nodes = half_nodes(model, self.plan)
        for name, reason in self.plan.wide.items():
            self.refuse(f"stays in float32: {reason}", next((v for v in _values(model) if v.name == name), None))
        if nodes:
            _Converter(model, self.plan, nodes, self.clamped).run()
        return len(nodes)


def half_nodes(model: ir.Model, plan: HalfPlan) -> set[ir.Node]:
    """Return the nodes of the main graph that a plan computes in 16 bits."""
    found: set[ir.Node] = set()
    for node in model.graph:
        if _float_values(node) and node.outputs[0].name not in plan.wide and _may(node, plan, found):
            found.add(node)
    for node in reversed(model.graph):  # what only moves numbers made of integers has the type of its readers
        producer = node.inputs[0].producer() if node in found and node.op_type in MOVES and node.inputs[0] else None
        if producer is not None and producer not in found and not any(u.node in found for u in node.outputs[0].uses()):
            found.discard(node)
    for node in list(model.graph):  # a mask or a number that only such nodes read is made in 16 bits at once
        made = node.outputs[0]
        if node in found or not is_op(node, "Cast") or made.dtype != FLOAT or made.is_graph_output():
            continue
        source = node.inputs[0].dtype if node.inputs[0] is not None else None
        users = [use.node for use in made.uses()]
        if source in _NUMBERS and users and all(user in found and _wants(user, made) for user in users):
            found.add(node)
    return found


_NUMBERS = frozenset({ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64})


def _may(node: ir.Node, plan: HalfPlan, found: set[ir.Node]) -> bool:
    """Tell whether a node has a kernel for it, and no input that has a reason to be float32."""
    standard = node.domain in STANDARD_DOMAINS
    if has_subgraph(node) or not (standard or node.domain == CONTRIB):
        return False
    inputs = [value for value in node.inputs if value is not None and value.dtype == FLOAT and not is_constant(value)]
    made = [value.producer() for value in inputs if value.name not in plan.caches]
    if standard and node.op_type in MOVES:
        return all(producer is None or producer in found or _is_neutral(producer) for producer in made)
    kinds = (STANDARD if standard else OWN).get(node.op_type, frozenset())
    if plan.kind not in kinds or (node.op_type == "MatMul" and standard and _sums_without_limit(node)):
        return False
    # float32 that was kept on purpose goes on until something has a reason to leave it: a product, a norm, an attention
    small = standard and node.op_type in _FOLLOWERS
    return not small or all(producer is None or producer in found or _is_neutral(producer) for producer in made)


_FOLLOWERS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Neg", "Abs", "Relu", "Sigmoid", "Tanh", "Erf", "Clip", "Min", "Max", "Sum"}
)


def _is_neutral(node: ir.Node) -> bool:
    """Tell whether a node makes floats of integers, so that its type is free."""
    return is_op(node, "Cast") and node.inputs[0] is not None and node.inputs[0].dtype in _NUMBERS


def _sums_without_limit(node: ir.Node) -> bool:
    """Tell whether a product sums over an axis of any length, as a mean over tokens does."""
    if any(is_constant(value) for value in node.inputs):
        return False
    return not isinstance((dims(node.inputs[0]) or (None,))[-1], int)


def _wants(node: ir.Node, value: ir.Value) -> bool:
    """Tell whether a node that computes in 16 bits reads a value in 16 bits."""
    wide = WIDE_INPUTS.get(node.op_type, ())
    return any(other is value and place not in wide for place, other in enumerate(node.inputs))


def _float_values(node: ir.Node) -> bool:
    return any(value is not None and value.dtype == FLOAT for value in (*node.inputs, *node.outputs))


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph:
        yield from node.outputs


def narrow(array: Array, kind: HalfKind) -> tuple[Array, bool]:
    """Return an array in 16 bits, and whether finite numbers of it were beyond the range."""
    dtype = np.dtype(np.float16) if kind == "fp16" else np.dtype(ml_dtypes.bfloat16)
    limit = float(ml_dtypes.finfo(dtype).max)
    finite = np.isfinite(array)
    beyond = bool((np.abs(array, where=finite, out=np.zeros_like(array)) > limit).any())
    if beyond:
        array = np.where(finite, np.clip(array, -limit, limit), array)
    return array.astype(dtype), beyond


class _Converter:
    """Changes the types of a graph in one walk."""

    def __init__(self, model: ir.Model, plan: HalfPlan, nodes: set[ir.Node], clamped: list[str]) -> None:
        self._model, self._plan, self._nodes, self._clamped = model, plan, nodes, clamped
        self._dtype = DTYPES[plan.kind]
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._constants: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        graph = self._model.graph
        for value in graph.inputs:
            if value.name in self._plan.caches and value.dtype == FLOAT:
                value.type = ir.TensorType(self._dtype)
        for node in list(graph):
            if node in self._nodes:
                self._narrow_node(node)
        for node in list(ir.traversal.RecursiveGraphIterator(graph)):
            self._connect(node)
        self._finish_outputs()

    def _narrow_node(self, node: ir.Node) -> None:
        """Give the outputs of a node their new type."""
        if is_op(node, "Cast"):
            node.attributes["to"] = ir.AttrInt64("to", self._dtype.value)
        for value in node.outputs:
            if value.dtype == FLOAT:
                value.type = ir.TensorType(self._dtype)

    def _connect(self, node: ir.Node) -> None:
        """Hand every input over in the type that the node reads."""
        if is_op(node, *ANY_TYPE):
            return
        inside = node in self._nodes
        wide = WIDE_INPUTS.get(node.op_type, ())
        for place, value in enumerate(node.inputs):
            if value is None:
                continue
            wanted = self._dtype if inside and place not in wide else FLOAT
            if value.dtype not in (FLOAT, self._dtype) or value.dtype == wanted:
                continue
            new = self._constant(value) if is_constant(value) and wanted != FLOAT else self._cast(value, wanted)
            node.replace_input_with(place, new)

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return a value in another type, made once, behind what makes the value."""
        key = (value, dtype)
        if key not in self._casts:
            name = f"{value.name}/{dtype.name.lower()}"
            cast = ir.node("Cast", [value], {"to": dtype.value}, name=name)
            cast.metadata_props[PASS_KEY] = HalfPrecision.name
            made = cast.outputs[0]
            made.name, made.type, made.shape = name, ir.TensorType(dtype), value.shape
            producer = value.producer()
            graph = self._model.graph
            if producer is not None and producer.graph is not None:
                producer.graph.insert_after(producer, [cast])
            else:
                graph.insert_before(next(iter(graph)), [cast])
            self._casts[key] = made
        return self._casts[key]

    def _constant(self, value: ir.Value) -> ir.Value:
        """Return a constant in 16 bits; under its own name when nobody reads it in float32 any more."""
        if value not in self._constants:
            array = constant(value)
            if array is None:
                raise ValueError(f"{value.name} is no constant")
            short, beyond = narrow(array, self._plan.kind)
            if beyond:
                self._clamped.append(value.name or "")
            tensor = tensor_of(short, value.name or "")
            alone = all(use.node in self._nodes and _wants(use.node, value) for use in value.uses())
            if alone and not value.is_graph_output() and value.producer() is None:
                value.const_value, value.type = tensor, ir.TensorType(self._dtype)
                return value
            name = f"{value.name}/{self._dtype.name.lower()}"
            copy = ir.Value(name=name, type=ir.TensorType(self._dtype), shape=value.shape, const_value=tensor)
            tensor.name = name
            self._model.graph.register_initializer(copy)
            self._constants[value] = copy
        return self._constants[value]

    def _finish_outputs(self) -> None:
        """Give outputs of the graph their type back, but those that the plan hands over in 16 bits."""
        graph = self._model.graph
        for index, value in enumerate(graph.outputs):
            if value.dtype == self._dtype and value.name not in self._plan.caches:
                new, name = self._cast(value, FLOAT), value.name
                value.name, new.name = f"{name}/{self._dtype.name.lower()}", name
                graph.outputs[index] = new
            elif value.dtype == FLOAT and value.name in self._plan.caches:
                new, name = self._cast(value, self._dtype), value.name
                value.name, new.name = f"{name}/float", name
                graph.outputs[index] = new
