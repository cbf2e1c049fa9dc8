"""Follow the channels of a graph from the weights that make them to those that read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxopt.channels.groups import Channels, Slot
from onnxopt.channels.sizes import (
    Edit,
    GroupSize,
    HeadCounts,
    Ids,
    ShapeSizes,
    SplitSizes,
    follow,
    spelling,
    static,
)
from onnxopt.graph import CONTRIB, STANDARD_DOMAINS, attribute, dims, integers, is_constant

Axes = dict[int, Ids]  # by axis, counted from 0: the ids of its entries

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
        model: sorted; shapes known where `onnxopt.observe` could know them.
    """
    return _Walk(model).go()


@dataclass
class _Walk:
    model: ir.Model
    axes: dict[ir.Value, Axes] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    count: int = 0
    pairs: list[tuple[Ids, Ids]] = field(default_factory=list)
    locks: list[Ids] = field(default_factory=list)
    marks: list[Ids] = field(default_factory=list)
    sizes: list[Edit] = field(default_factory=list)

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

    # Ids

    def _fresh(self, size: int) -> Ids:
        ids = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return ids

    def _join(self, one: Ids, other: Ids) -> None:
        if one is not other and len(one) == len(other):
            self.pairs.append((one, other))

    def _classes(self) -> Ids:
        """Return the class of each id: the least id it is joined with (labels fall along the pairs until none does)."""
        label = np.arange(self.count, dtype=np.int64)
        if not self.pairs:
            return label
        left = np.concatenate([one for one, _ in self.pairs])
        right = np.concatenate([other for _, other in self.pairs])
        while True:
            least = np.minimum(label[left], label[right])
            before = label.copy()
            np.minimum.at(label, left, least)
            np.minimum.at(label, right, least)
            np.minimum.at(label, before[left], least)
            np.minimum.at(label, before[right], least)
            label = label[label]
            if np.array_equal(label, before):
                return label

    def _lock(self, value: ir.Value | None, axis: int | None = None) -> None:
        for number, ids in self.axes.get(value, {}).items() if value is not None else ():
            if axis is None or number == axis:
                self.locks.append(ids)

    def _ids(self, value: ir.Value | None, axis: int) -> Ids | None:
        return self.axes.get(value, {}).get(axis) if value is not None else None

    def _give(self, value: ir.Value, axis: int, ids: Ids) -> None:
        size = static(value)
        if 0 <= axis < len(size) and size[axis] == len(ids):
            self.axes.setdefault(value, {})[axis] = ids
        else:
            self.locks.append(ids)

    def _slot(self, node: ir.Node, index: int, axis: int, ids: Ids, role: Literal["makes", "reads", "rides"]) -> None:
        self.slots.append(Slot(node, index, axis, ids, role))

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

    def _locked(self, size: int | None) -> Ids | None:
        if size is None or size <= 1:
            return None
        ids = self._fresh(size)
        self.locks.append(ids)
        return ids

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

    def _concat(self, node: ir.Node) -> bool:
        out = node.outputs[0]
        rank = len(static(out))
        axis = int(attribute(node, "axis")) % max(rank, 1)
        parts: list[Ids] = []
        for index, value in enumerate(node.inputs):
            size = static(value)[axis] if len(static(value)) == rank else None
            ids = self._ids(value, axis)
            if ids is None:
                ids = self._locked(size) if size != 1 else self._one()
            if ids is None:
                parts = []
                break
            if is_constant(value):
                self._slot(node, index, axis, ids, "rides")
            parts.append(ids)
        if parts:
            self._give(out, axis, np.concatenate(parts))
        else:
            for value in node.inputs:
                self._lock(value, axis)
        for other in set(range(rank)) - {axis}:
            found = [ids for value in node.inputs if (ids := self._ids(value, other)) is not None]
            for ids in found[1:]:
                self._join(found[0], ids)
            if found and len(found) == len(node.inputs):
                self._give(out, other, found[0])
            else:
                self.locks.extend(found)
        return True

    def _one(self) -> Ids:
        ids = self._fresh(1)
        self.locks.append(ids)
        return ids

    def _split(self, node: ir.Node) -> bool:
        x = node.inputs[0]
        axis = int(attribute(node, "axis") or 0) % max(len(static(x)), 1)
        widths = [static(value)[axis] if static(value) else None for value in node.outputs]
        ids = self._ids(x, axis)
        if ids is not None:
            if None in widths or sum(width or 0 for width in widths) != len(ids):
                return False
            start, parts = 0, []
            for value, width in zip(node.outputs, widths, strict=True):
                parts.append(ids[start : start + (width or 0)])
                self._give(value, axis, parts[-1])
                start += width or 0
            self.sizes.append(SplitSizes(self.model, node, parts))
        for other, found in self.axes.get(x, {}).items() if x is not None else ():
            if other != axis:
                for value in node.outputs:
                    self._give(value, other, found)
        return True

    def _transpose(self, node: ir.Node) -> bool:
        x = node.inputs[0]
        order = attribute(node, "perm") or tuple(reversed(range(len(static(x)))))
        for to, come in enumerate(order):
            ids = self._ids(x, int(come))
            if ids is not None:
                self._give(node.outputs[0], to, ids)
        return True

    def _reshape_free(self, node: ir.Node) -> bool:
        return self._regroup(node, spelled=False)

    def _flatten(self, node: ir.Node) -> bool:
        return self._regroup(node, spelled=False)

    def _reshape(self, node: ir.Node) -> bool:
        return self._regroup(node, spelled=True)

    def _regroup(self, node: ir.Node, *, spelled: bool) -> bool:
        """Map axes of the input to those of the output by the products of their sizes, unknown ones by their names."""
        x, out = node.inputs[0], node.outputs[0]
        if x is None or is_constant(x):
            return True
        new: Axes = {}
        for old, fresh in aligned(dims(x) or (), dims(out) or ()):
            known = {axis: ids for axis in old if (ids := self._ids(x, axis)) is not None}
            if not known:
                continue
            found = self._regrouped(known, [static(x)[axis] for axis in old], old, [static(out)[a] for a in fresh])
            if found is None:
                self.locks.extend(known.values())
                continue
            new |= {axis: ids for axis, ids in zip(fresh, found, strict=True) if ids is not None}
        if spelled and new and not self._can_spell(node, new):
            for ids in new.values():
                self.locks.append(ids)
        elif spelled and new:
            self.sizes.append(ShapeSizes(self.model, node, new))
        for axis, ids in new.items():
            self._give(out, axis, ids)
        covered = {axis for old, _ in aligned(dims(x) or (), dims(out) or ()) for axis in old}
        for axis, ids in self.axes.get(x, {}).items():
            if axis not in covered:
                self.locks.append(ids)
        return True

    def _regrouped(
        self, known: Axes, sizes: Sequence[int | None], old: Sequence[int], fresh: Sequence[int | None]
    ) -> list[Ids | None] | None:
        """Return ids of the new axes of one group of axes, or None when they cannot be followed."""
        if len(old) == len(fresh) == 1:
            return [known[old[0]]]
        if None in sizes or None in fresh:
            return None
        full = [size or 0 for size in sizes]
        if len(old) == 1 and len(fresh) == 2 and (fresh[0] or 0) > 1:  # into heads
            blocks = known[old[0]].reshape(fresh[0] or 0, fresh[1] or 0)
            for column in range(1, blocks.shape[1]):
                self._join(blocks[:, 0], blocks[:, column])
            return [blocks[:, 0].copy(), self._locked(fresh[1])]
        if len(fresh) == 1 and len(known) >= 1:  # back, or flat
            first = next(iter(known))
            others = [axis for axis in old if axis != first]
            for axis in others:
                if axis in known:
                    self.locks.append(known[axis])
            place = list(old).index(first)
            inner = int(np.prod(full[place + 1 :]))
            outer = int(np.prod(full[:place]))
            return [np.tile(np.repeat(known[first], inner), outer)]
        if 1 in full or 1 in fresh:  # axes of one entry come and go
            wide_old = [axis for axis, size in zip(old, full, strict=True) if size != 1]
            wide_new = [place for place, size in enumerate(fresh) if size != 1]
            if len(wide_old) == len(wide_new) == 1 and wide_old[0] in known:
                result: list[Ids | None] = [None] * len(fresh)
                result[wide_new[0]] = known[wide_old[0]]
                return result
        return None

    def _can_spell(self, node: ir.Node, new: Axes) -> bool:
        return spelling(node, max(new)) is not None and all(spelling(node, axis) is not None for axis in new)

    def _gather(self, node: ir.Node) -> bool:
        data, index, out = node.inputs[0], node.inputs[1], node.outputs[0]
        axis = int(attribute(node, "axis") or 0) % max(len(static(data)), 1)
        moved = len(static(index)) - 1
        if is_constant(data):
            for number, size in enumerate(static(data)):
                place = number if number < axis else number + moved
                if number != axis and size is not None and size > 1:
                    ids = self._fresh(size)
                    self._slot(node, 0, number, ids, "makes")
                    self._give(out, place, ids)
            return True
        for number, ids in self.axes.get(data, {}).items() if data is not None else ():
            if number == axis:
                self.locks.append(ids)
            else:
                self._give(out, number if number < axis else number + moved, ids)
        self._lock(index)
        return True

    def _slice(self, node: ir.Node) -> bool:
        x = node.inputs[0]
        rank = len(static(x))
        given = integers(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else tuple(range(rank))
        if given is None or x is None or is_constant(x):
            return False
        for number, ids in self.axes.get(x, {}).items():
            if number in {axis % rank for axis in given}:
                self.locks.append(ids)
            else:
                self._give(node.outputs[0], number, ids)
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


def aligned(
    old: Sequence[int | str | None], new: Sequence[int | str | None]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return which axes of the input of a Reshape become which of its output, in the smallest groups.

    Sizes are compared as products, named axes by their names; what cannot be told is left out.
    """
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i, j = len(old), len(new)
    while i > 0 and j > 0:
        a, b = old[i - 1], new[j - 1]
        if not isinstance(a, int) or not isinstance(b, int):
            if a is None or a != b:
                return groups
            i, j = i - 1, j - 1
            continue
        left, right, ends = i - 1, j - 1, (i, j)
        product, other = a, b
        while product != other:
            if product < other:
                left -= 1
                step = old[left] if left >= 0 else None
                if not isinstance(step, int):
                    return groups
                product *= step
            else:
                right -= 1
                step = new[right] if right >= 0 else None
                if not isinstance(step, int):
                    return groups
                other *= step
        groups.append((tuple(range(left, ends[0])), tuple(range(right, ends[1]))))
        i, j = left, right
    return groups
