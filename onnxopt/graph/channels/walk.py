"""Follow the channels of a graph from the weights that make them to those that read them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxopt.graph.channels.groups import Channels, Slot
from onnxopt.graph.channels.moves import Moves
from onnxopt.graph.channels.sizes import GroupSize, HeadCounts, Ids, follow, static
from onnxopt.graph.nodes import CONTRIB, STANDARD_DOMAINS, attribute
from onnxopt.graph.values import integers, is_constant

# fmt: off
UNARY = frozenset((
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
))
BINARY = frozenset((
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "PRelu", "Where", "Equal", "Greater", "Less", "And",
    "Or", "Mod",
))
POOLS = frozenset((
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool", "InstanceNormalization",
))
REDUCTIONS = frozenset((
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceL1", "ReduceProd", "ReduceSumSquare",
))
# fmt: on


def find_channels(model: ir.Model) -> Channels:
    """Follow the channels of a graph whose values have shapes.

    Args:
        model: sorted; shapes known where `onnxopt.probe.observe` could know them.
    """
    return _Walk(model).go()


class _Walk(Moves):
    def go(self) -> Channels:
        for node in self.model.graph:
            self._node(node)
        for value in self.model.graph.outputs:
            self._lock(value)
        label = self._classes()
        locked, heads = np.zeros(self.count, bool), np.zeros(self.count, bool)
        for ids in self.locks:
            locked[label[ids]] = True
        for ids in self.marks:
            heads[label[ids]] = True
        slots = [Slot(one.node, one.index, one.axis, label[one.ids], one.role) for one in self.slots]
        edits = [follow(edit, label) for edit in self.sizes]
        return Channels(slots, locked, heads, edits)

    # Operators

    def _node(self, node: ir.Node) -> None:
        if not any(value in self.axes for value in node.inputs if value is not None) and not any(
            is_constant(value) for value in node.inputs
        ):
            return
        known = node.domain in STANDARD_DOMAINS or (node.domain == CONTRIB and node.op_type == "QuickGelu")
        handler = (
            self._handler(node.op_type) if known and all(value.shape is not None for value in node.outputs) else None
        )
        if handler is None or not handler(node):
            for value in node.inputs:
                self._lock(value)
            for value in node.outputs:
                self.axes.pop(value, None)

    def _handler(self, kind: str) -> Callable[[ir.Node], bool] | None:
        if kind in UNARY or kind == "QuickGelu":
            return self._pass_on
        if kind in BINARY:
            return self._elementwise
        if kind in POOLS:
            return self._pool
        if kind in REDUCTIONS:
            return self._reduce
        return {
            "MatMul": self._product,
            "Gemm": self._product,
            "Conv": self._conv,
            "BatchNormalization": self._batch_norm,
            "LayerNormalization": self._norm,
            "RMSNormalization": self._norm,
            "LpNormalization": self._norm,
            "Softmax": self._norm,
            "LogSoftmax": self._norm,
            "Concat": self._concat,
            "Split": self._split,
            "Transpose": self._transpose,
            "Reshape": self._reshape,
            "Flatten": self._flatten,
            "Squeeze": self._reshape_free,
            "Unsqueeze": self._reshape_free,
            "Gather": self._gather,
            "Slice": self._slice,
            "Pad": self._pool,
            "Resize": self._pool,
            "Attention": self._attention,
            "RotaryEmbedding": self._rotary,
            "Shape": self._nothing,
            "Size": self._nothing,
        }.get(kind)

    def _nothing(self, node: ir.Node) -> bool:
        """Read sizes only, which whoever spells them out follows."""
        return node.op_type in ("Shape", "Size")

    def _pass_on(self, node: ir.Node) -> bool:
        for axis, ids in self.axes.get(node.inputs[0], {}).items() if node.inputs[0] is not None else ():
            self._give(node.outputs[0], axis, ids)
        return True

    def _elementwise(self, node: ir.Node) -> bool:
        out = node.outputs[0]
        rank = len(static(out))
        for axis, size in enumerate(static(out)):
            found: Ids | None = None
            riders = []
            for index, value in enumerate(node.inputs):
                shape = static(value)
                place = axis - (rank - len(shape))
                if value is None or place < 0 or shape[place] == 1:
                    continue
                if is_constant(value):
                    riders.append((index, place))
                    continue
                ids = self._ids(value, place)
                if ids is None:
                    ids = self._locked(size)
                if ids is not None and found is not None:
                    self._join(found, ids)
                found = ids if found is None else found
            if found is None and size is not None and riders:
                found = self._locked(size)  # a constant is not made by anything
            if found is None or len(found) != size:
                continue
            for index, place in riders:
                self._slot(node, index, place, found, "rides")
            self._give(out, axis, found)
        return True

    def _product(self, node: ir.Node) -> bool:
        x, weight = node.inputs[0], node.inputs[1]
        shape = static(weight)
        if not is_constant(weight) or len(shape) != 2 or None in shape or x is None:
            return False
        transposed = node.op_type == "Gemm" and bool(attribute(node, "transB"))
        if node.op_type == "Gemm" and attribute(node, "transA"):
            return False
        reads, makes = (1, 0) if transposed else (0, 1)
        last, out = len(static(x)) - 1, node.outputs[0]
        ids = self._ids(x, last)
        if ids is None:
            ids = self._locked(shape[reads])
        if ids is not None:
            self._slot(node, 1, reads, ids, "reads")
        fresh = self._fresh(int(shape[makes] or 0))
        self._slot(node, 1, makes, fresh, "makes")
        self._give(out, len(static(out)) - 1, fresh)
        for axis in range(last):
            found = self._ids(x, axis)
            if found is not None:
                self._give(out, axis, found)
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            self._addend(node, fresh)
        return True

    def _addend(self, node: ir.Node, fresh: Ids) -> None:
        addend = node.inputs[2]
        shape = static(addend)
        if not shape or shape[-1] == 1:
            return
        if is_constant(addend):
            self._slot(node, 2, len(shape) - 1, fresh, "rides")
            return
        ids = self._ids(addend, len(shape) - 1)
        ids = self._locked(len(fresh)) if ids is None else ids
        if ids is not None:
            self._join(fresh, ids)

    def _conv(self, node: ir.Node) -> bool:
        x, weight = node.inputs[0], node.inputs[1]
        shape = static(weight)
        groups = int(attribute(node, "group") or 1)
        if not is_constant(weight) or None in shape or x is None:
            return False
        out, ids = node.outputs[0], self._ids(x, 1)
        if groups == 1:
            if ids is None:
                ids = self._locked(shape[1])
            if ids is not None:
                self._slot(node, 1, 1, ids, "reads")
            fresh = self._fresh(int(shape[0] or 0))
            self._slot(node, 1, 0, fresh, "makes")
        elif ids is not None and groups == len(ids) == shape[0]:
            fresh = ids  # depthwise: each channel for itself
            self._slot(node, 1, 0, fresh, "rides")
            self.sizes.append(GroupSize(node, ids))
        else:
            return False
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            self._slot(node, 2, 0, fresh, "rides")
        self._give(out, 1, fresh)
        return True

    def _batch_norm(self, node: ir.Node) -> bool:
        ids = self._ids(node.inputs[0], 1)
        if ids is None or not all(is_constant(value) for value in node.inputs[1:5]) or len(node.outputs) > 1:
            return False
        for index in range(1, 5):
            self._slot(node, index, 0, ids, "rides")
        self._give(node.outputs[0], 1, ids)
        return True

    def _pool(self, node: ir.Node) -> bool:
        """Pass the channels on where the operator works on height and width only."""
        x, out = node.inputs[0], node.outputs[0]
        ids = self._ids(x, 1)
        if ids is None or len(static(x)) < 3 or static(out)[1] != len(ids):
            return False
        for index, value in enumerate(node.inputs[1:], start=1):
            if value is not None and node.op_type == "InstanceNormalization":
                self._slot(node, index, 0, ids, "rides")
        if node.op_type == "Pad" and len(node.inputs) > 1 and (integers(node.inputs[1]) or (1, 1))[1] != 0:
            return False
        if node.op_type == "Resize" and len(node.inputs) > 3 and node.inputs[3] is not None:
            return False  # it spells all sizes out
        for axis in self.axes.get(x, {}) if x is not None else ():
            if axis > 1:
                self._lock(x, axis)
        self._give(out, 1, ids)
        return True

    def _norm(self, node: ir.Node) -> bool:
        x, out = node.inputs[0], node.outputs[0]
        rank = len(static(x))
        axis = int(attribute(node, "axis") if attribute(node, "axis") is not None else -1) % max(rank, 1)
        mixed = range(axis, rank) if node.op_type in ("LayerNormalization", "RMSNormalization") else (axis,)
        for number, ids in self.axes.get(x, {}).items() if x is not None else ():
            if number in mixed:
                self.locks.append(ids)
            self._give(out, number, ids)
        for value in node.outputs[1:]:
            self.axes.pop(value, None)
        return True

    def _reduce(self, node: ir.Node) -> bool:
        x, out = node.inputs[0], node.outputs[0]
        given = integers(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
        rank = len(static(x))
        if given is None:
            return False
        gone = {int(axis) % rank for axis in given}
        keeps = bool(attribute(node, "keepdims"))
        for axis, ids in self.axes.get(x, {}).items() if x is not None else ():
            if axis in gone:
                self.locks.append(ids)
            else:
                self._give(out, axis if keeps else axis - sum(one < axis for one in gone), ids)
        return True

    def _attention(self, node: ir.Node) -> bool:
        """A key head with its value head and the query heads that share it live and go together."""
        query, key, value = node.inputs[:3]
        flat = len(static(query)) == 3
        axis = 2 if flat else 1
        heads = [static(one)[axis] if len(static(one)) > axis else None for one in (query, key, value)]
        if flat:
            heads = [attribute(node, "q_num_heads"), attribute(node, "kv_num_heads"), attribute(node, "kv_num_heads")]
        ids = [self._ids(one, axis) for one in (query, key, value)]
        out = node.outputs[0]
        size = static(out)[axis]
        if any(one is None for one in ids) or any(not head for head in heads) or size is None:
            return False
        own = [int(head or 0) for head in heads]
        groups = own[1]
        if own[0] % groups:
            return False
        fresh = self._fresh(size)
        first: Ids | None = None
        for one in (*ids, fresh):
            if one is None or len(one) % groups:
                return False
            blocks = one.reshape(groups, -1)
            first = blocks[:, 0] if first is None else first
            for column in range(blocks.shape[1]):
                self._join(first, blocks[:, column].copy())
        if first is not None:
            self.marks.append(first)
        for index, extra in enumerate(node.inputs[3:], start=3):
            if extra is not None and index > 3 and first is not None:
                self.locks.append(first)  # the past is given from outside
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if mask is not None and len(static(mask)) == 4 and static(mask)[1] != 1 and first is not None:
            self.locks.append(first)  # a bias per head
        self._give(out, axis, fresh)
        if flat and ids[0] is not None and ids[1] is not None:
            counted = {"q_num_heads": ids[0], "kv_num_heads": ids[1]}
            self.sizes.append(HeadCounts(node, counted, own[0], own[1]))
        return True

    def _rotary(self, node: ir.Node) -> bool:
        x, out = node.inputs[0], node.outputs[0]
        flat = len(static(x)) == 3
        axis = 2 if flat else 1
        ids = self._ids(x, axis)
        if ids is None:
            return False
        for number, found in self.axes.get(x, {}).items() if x is not None else ():
            if number != axis:
                self.locks.append(found)
        if flat:
            heads = int(attribute(node, "num_heads") or 0)
            if not heads:
                return False
            blocks = ids.reshape(heads, -1)
            for column in range(1, blocks.shape[1]):
                self._join(blocks[:, 0], blocks[:, column])
            self.sizes.append(HeadCounts(node, {"num_heads": ids}, heads, heads))
        self._give(out, axis, ids)
        return True
