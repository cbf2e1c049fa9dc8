"""Run everything but attention on the real tokens only.

Before::

    x [batch, sequence, d] ─ MatMul ─ Add ─ Split ─ Attention(padding mask) ─ MatMul … ─ y [batch, sequence, d]

After::

    x ─ Gather(real tokens) [tokens, d] ─ MatMul ─ Add ─┬─ Gather [batch, longest, 3d] ─ GroupQueryAttention(lengths) ─┐
                                                        └──────────────── Gather(real tokens) ─ MatMul … ──────────────┘
                                                                                … ─ Gather(padded places) ─ y

Meets: encoders after fuse-padding-mask and pack-qkv, whatever side or holes the padding has.
Numerics: reassociated, on positions that are not padding; padded positions of an output become zero.
Source: the construction follows RemovePadding and RestorePadding of ONNX Runtime's CUDA encoders, in stock operators.
    Rows are packed to the left whatever the padding was, and the padded length is the longest real row, so masks become
    lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import CONTRIB, attribute, dims, integers, is_constant, is_op, number, rank, remove_dead
from onnxopt.passes.fuse.padding_mask import padding_bias
from onnxopt.passes.words.masks import padding_mask
from onnxopt.passes.words.scores import hides_for_good
from onnxopt.probe.sidegraph import is_contract
from onnxopt.rewrite import Builder, Pass
from onnxopt.rewrite.patterns import Miss, Ops, State, Var
from onnxopt.rewrite.patterns import match as match_pattern
from onnxopt.rewrite.registry import register
from onnxopt.spec import Array, Reassociated

TOKEN_WISE = frozenset(
    {"Add", "Mul", "Sub", "Div", "Sum", "Gelu", "Relu", "Tanh", "Sigmoid", "Erf", "MatMul", "LayerNormalization"}
)
# Linears with a quantized weight: every row of their first input is a token of its own, all else is constant.
QUANTIZED = frozenset({"MatMulIntegerToFloat", "MatMulNBits"})
HEAD_SIZE_MULTIPLE = 8  # GroupQueryAttention refuses other sizes (ONNX Runtime 1.32)
ROW_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})


@dataclass(frozen=True)
class _SelfAttention:
    """An attention whose queries, keys and values are one packed projection.

    Attributes:
        node: the Attention.
        split: the Split in front of it.
        packed: [batch, sequence, 3 * width].
        heads: how many.
        scale: of the scores; None for the default.
    """

    node: ir.Node
    split: ir.Node
    packed: ir.Value
    heads: int
    scale: float | None


@register
class RemovePadding(Pass):
    """f(x) on all positions  →  f(x) on the positions that attention_mask keeps."""

    name = "remove-padding"
    numerics = Reassociated(rtol=1e-4, atol=1e-5)
    touches_padding = True
    enables = ("fuse-linear", "fold-residual")

    def run(self, model: ir.Model) -> int:
        """Pack the tokens once, or leave the graph alone; returns how many attentions work on packed rows."""
        found = [_self_attention(node) for node in model.graph if is_op(node, "Attention")]
        attentions = [item for item in found if item is not None]
        masks = {_mask_source(item.node) for item in attentions}
        if not attentions or len(attentions) != len(found) or len(masks) != 1:
            return 0
        mask = masks.pop()
        if mask is None or len(dims(mask) or ()) != 2:
            return 0
        if not is_contract(mask):
            self.refuse(f"{mask.name} may leave a row nothing to see, which has an answer all the same", mask)
            return 0
        members = _token_wise(model, {item.node: item for item in attentions}, dims(mask) or ())
        if not all(item.node in members for item in attentions):
            return 0
        _Packer(model, mask, {item.node: item for item in attentions}, members).run()
        return len(attentions)


def _self_attention(node: ir.Node) -> _SelfAttention | None:
    if len(node.inputs) < 4 or any(value is not None for value in node.inputs[4:]):
        return None
    producers = [value.producer() if value is not None else None for value in node.inputs[:3]]
    split = producers[0]
    if split is None or not is_op(split, "Split") or any(other is not split for other in producers):
        return None
    widths = integers(split.inputs[1]) if len(split.inputs) > 1 else None
    order = [value.index() for value in node.inputs[:3] if value is not None]
    heads = attribute(node, "q_num_heads")
    plain = (
        not attribute(node, "is_causal") and not attribute(node, "softcap") and heads == attribute(node, "kv_num_heads")
    )
    used_by_others = any(use.node is not node for value in split.outputs for use in value.uses())
    packed = split.inputs[0]
    if widths is not None and heads and (widths[0] // heads) % HEAD_SIZE_MULTIPLE:
        return None
    if not heads or not plain or widths is None or len(set(widths)) != 1 or order != [0, 1, 2] or used_by_others:
        return None
    if (
        packed is None
        or packed.dtype != ir.DataType.FLOAT
        or any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
    ):
        return None
    scale = attribute(node, "scale")
    default = (widths[0] // heads) ** -0.5
    own = None if scale is None or abs(scale - default) < 1e-6 * default else float(scale)
    return _SelfAttention(node, split, packed, int(heads), own)


def _mask_source(node: ir.Node) -> ir.Value | None:
    """Return the [batch, keys] mask behind an attention, when it is canonical and hides keys whatever their scores."""
    for canonical in (padding_mask, padding_bias):
        for state in match_pattern(canonical(Ops(), Var("source")), node.inputs[3], State(), Miss()):
            fill = number(state.values.get("fill"))
            return state.values["source"] if fill is None or hides_for_good(node, -fill) else None
    return None


def _token_wise(
    model: ir.Model, attentions: dict[ir.Node, _SelfAttention], axes: tuple[int | str | None, ...]
) -> set[ir.Node]:
    """Return the nodes that treat every token alike, with the attentions and their Splits."""

    def on_tokens(value: ir.Value | None) -> bool:
        return value is not None and rank(value) == 3 and (dims(value) or ())[:2] == axes

    def plain(value: ir.Value | None) -> bool:
        return value is None or (is_constant(value) and len(dims(value) or ()) <= 1)

    members: set[ir.Node] = set()
    splits = {item.split for item in attentions.values()}
    for node in model.graph:
        if node in attentions or node in splits:
            members.add(node)
            continue
        if _is_quantized_row_wise(node, on_tokens):
            members.add(node)
            continue
        if (
            node.op_type not in TOKEN_WISE
            or node.domain not in ("", "ai.onnx", "com.microsoft")
            or not on_tokens(node.outputs[0])
        ):
            continue
        if node.op_type == "MatMul":
            fits = on_tokens(node.inputs[0]) and is_constant(node.inputs[1]) and len(dims(node.inputs[1]) or ()) == 2
        elif node.op_type in ROW_NORMS:
            last = attribute(node, "axis")
            fits = (
                on_tokens(node.inputs[0]) and last in (-1, 2, None) and all(plain(value) for value in node.inputs[1:])
            )
        else:
            fits = all(on_tokens(value) or plain(value) for value in node.inputs) and any(map(on_tokens, node.inputs))
        if fits and node.outputs[0].dtype == ir.DataType.FLOAT:
            members.add(node)
    return _around_attention(members, attentions)


def _is_quantized_row_wise(node: ir.Node, on_tokens: Callable[[ir.Value | None], bool]) -> bool:
    """A quantized linear with constant scales, or the quantization to one constant scale in front of such."""
    if not node.inputs or not on_tokens(node.inputs[0]) or not on_tokens(node.outputs[0]):
        return False
    if not all(value is None or is_constant(value) for value in node.inputs[1:]):
        return False
    if node.domain == CONTRIB and node.op_type in QUANTIZED:
        return node.outputs[0].dtype == ir.DataType.FLOAT
    readers = [use.node for use in node.outputs[0].uses()]
    one_scale = all(value is None or not (dims(value) or ()) for value in node.inputs[1:])
    return (
        is_op(node, "QuantizeLinear")
        and one_scale
        and not node.outputs[0].is_graph_output()
        and all(reader.domain == CONTRIB and reader.op_type in QUANTIZED for reader in readers)
    )


def _around_attention(members: set[ir.Node], attentions: dict[ir.Node, _SelfAttention]) -> set[ir.Node]:
    """Keep the members that are connected to an attention through members."""
    kept: set[ir.Node] = set()
    stack = list(attentions)
    while stack:
        node = stack.pop()
        if node in kept:
            continue
        kept.add(node)
        near = [value.producer() for value in node.inputs if value is not None]
        near += [use.node for value in node.outputs for use in value.uses()]
        stack.extend(other for other in near if other in members and other is not None)
    return kept


class _Packer:
    """Rebuilds the member nodes on packed tokens, in one walk."""

    def __init__(
        self, model: ir.Model, mask: ir.Value, attentions: dict[ir.Node, _SelfAttention], members: set[ir.Node]
    ) -> None:
        self._model = model
        self._mask = mask
        self._attentions = attentions
        self._members = members
        self._packed: dict[ir.Value, ir.Value] = {}
        self._op = Builder(model, "padding", RemovePadding.name)
        self._placed = 0

    def run(self) -> None:
        graph = self._model.graph
        order = [node for node in graph if node in self._members]
        self._plan()
        self._place(order[0])
        splits = {item.split for item in self._attentions.values()}
        for node in order:
            if node in splits:
                continue
            result = self._attention(self._attentions[node]) if node in self._attentions else self._token_wise(node)
            self._packed[node.outputs[0]] = result
            self._restore(node, node.outputs[0], result)
            self._place(node)
        for value in self._op.initializers:
            graph.register_initializer(value)
        for node in self._op.nodes:
            self._model.opset_imports.setdefault(node.domain, 1) if node.domain else None
        remove_dead(list(graph))

    def _place(self, anchor: ir.Node) -> None:
        """Insert what was built since the last call in front of a node."""
        self._model.graph.insert_before(anchor, self._op.nodes[self._placed :])
        self._placed = len(self._op.nodes)

    def _plan(self) -> None:
        """Compute once where the tokens are: all int64, from the mask alone."""
        op = self._op
        keep = op.Cast(self._mask, to=ir.DataType.BOOL.value)
        flags = op.Cast(keep, to=ir.DataType.INT64.value)
        flat = op.Reshape(flags, op.ints([-1], "flat"))
        self._tokens = op.Reshape(
            op.NonZero(flat), op.ints([-1], "flat_tokens")
        )  # [tokens], places in batch * sequence
        lengths = op.ReduceSum(flags, op.ints([1], "axis"), keepdims=0)  # [batch]
        one = op.constant(np.array(1, np.int64), "one")
        longest = op.Max(op.ReduceMax(lengths, keepdims=0), one)
        first = op.Sub(op.CumSum(lengths, op.constant(np.array(0, np.int64), "axis_0")), lengths)  # [batch]
        steps = op.Range(op.constant(np.array(0, np.int64), "zero"), longest, one)  # [longest]
        column = op.ints([1], "column")
        filled = op.Less(steps, op.Unsqueeze(lengths, column))  # bool [batch, longest]
        total = op.Shape(self._tokens)  # [1], which is also the index of the row of zeros
        self._rows = op.Where(filled, op.Add(op.Unsqueeze(first, column), steps), total)  # [batch, longest]
        filled_flat = op.Reshape(op.Cast(filled, to=ir.DataType.INT64.value), op.ints([-1], "flat_filled"))
        self._places = op.Reshape(op.NonZero(filled_flat), op.ints([-1], "flat_places"))  # [tokens]
        running = op.Sub(op.CumSum(flat, op.constant(np.array(0, np.int64), "axis_1")), one)
        back = op.Where(op.Cast(flat, to=ir.DataType.BOOL.value), running, total)
        self._back = op.Reshape(back, op.Shape(self._mask))  # [batch, sequence]
        last = op.Sub(op.Max(lengths, one), one)
        self._last = op.Cast(last, to=ir.DataType.INT32.value)
        self._longest = op.Cast(longest, to=ir.DataType.INT32.value)

    def _with_zero_row(self, value: ir.Value, width: int) -> ir.Value:
        zeros: Array = np.zeros((1, width), np.float32)
        return self._op.Concat(value, self._op.constant(zeros, f"zeros_{len(self._op.nodes)}"), axis=0)

    def _pack(self, value: ir.Value) -> ir.Value:
        """Return the [tokens, width] form of a value."""
        if value not in self._packed:
            width = int((dims(value) or (0, 0, 0))[2] or 0)
            rows = self._op.Reshape(value, self._op.ints([-1, width], f"rows_{len(self._op.nodes)}"))
            self._packed[value] = self._op.Gather(rows, self._tokens, axis=0)
        return self._packed[value]

    def _token_wise(self, node: ir.Node) -> ir.Value:
        inputs = [value if value is None or is_constant(value) else self._pack(value) for value in node.inputs]
        attributes = {name: attr.value for name, attr in node.attributes.items()}
        if node.op_type in ROW_NORMS:
            attributes["axis"] = -1
        return self._op.node(node.op_type, inputs, attributes, domain=node.domain)[0]

    def _attention(self, item: _SelfAttention) -> ir.Value:
        """Spread the packed projection over [batch, longest], attend by lengths, gather the tokens again."""
        op = self._op
        width = int((dims(item.packed) or (0, 0, 0))[2] or 0)
        spread = op.Gather(self._with_zero_row(self._pack(item.packed), width), self._rows, axis=0)
        inputs = [spread, None, None, None, None, self._last, self._longest]
        attributes = {"num_heads": item.heads, "kv_num_heads": item.heads, "causal": 0, "scale": item.scale}
        attended = op.node("GroupQueryAttention", inputs, attributes, domain="com.microsoft", outputs=3)[0]
        rows = op.Reshape(attended, op.ints([-1, width // 3], f"attended_{len(op.nodes)}"))
        return op.Gather(rows, self._places, axis=0)

    def _restore(self, node: ir.Node, old: ir.Value, packed: ir.Value) -> None:
        """Give the readers outside the members, and the outputs, the padded form."""
        outside = [use for use in old.uses() if use.node not in self._members]
        if not outside and not old.is_graph_output():
            return
        width = int((dims(old) or (0, 0, 0))[2] or 0)
        padded = self._op.Gather(self._with_zero_row(packed, width), self._back, axis=0)
        padded.type, padded.shape = old.type, old.shape
        for use in outside:
            use.node.replace_input_with(use.idx, padded)
        if old.is_graph_output():
            name, outputs = old.name, node.graph.outputs if node.graph is not None else []
            for index, value in enumerate(outputs):
                if value is old:
                    outputs[index] = padded
            old.name = f"{name}/replaced"
            padded.name = name
