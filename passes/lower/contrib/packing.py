"""Pack the rows of a batch without their padding, for kernels that take lengths."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.passes.words.layout import ENDLESS
from onnxopt.rewrite import Builder

LONGER_THAN_ROWS = 2**40


class Packing:
    """The values that every layer shares, and the two ways through them: to packed rows and back.

    Args:
        op: builds the nodes.
        ids: [batch, sequence].
        mask: [batch, total], not 0 where a token is real.

    Attributes:
        lengths: int32 [batch], real tokens of a row, less one.
        total: int32, the length of the mask.
        keys: int64 [total], places in the cache.
    """

    def __init__(self, op: Builder, ids: ir.Value, mask: ir.Value) -> None:
        self._op = op
        self._one = op.ints([1], "one")
        real = op.Cast(op.Cast(mask, to=ir.DataType.BOOL.value), to=ir.DataType.INT64.value)
        length = op.Shape(ids, start=1, end=2)
        new = op.Slice(real, op.Neg(length), op.ints([ENDLESS], "end"), self._one)
        zero, step = op.constant(np.array(0), "zero"), op.constant(np.array(1), "step")
        self._columns = op.Range(zero, op.Squeeze(length), step)
        # real tokens before padding, and each kind in its own order
        # (a constant, not the length: on a GPU the length would have to be copied there, and no CUDA graph allows that)
        keys = op.Sub(op.Mul(new, op.constant(np.array(LONGER_THAN_ROWS), "far")), self._columns)
        self._order = op.node("TopK", [keys, length], {"axis": -1}, outputs=2)[1]
        self._last = op.Max(op.Sub(op.ReduceSum(new, self._one, keepdims=1), self._one), zero)
        lengths = op.Max(op.Sub(op.ReduceSum(real, self._one, keepdims=0), self._one), zero)
        self.lengths = op.Cast(lengths, to=ir.DataType.INT32.value)
        total = op.Squeeze(op.Shape(mask, start=1, end=2))
        self.total = op.Cast(total, to=ir.DataType.INT32.value)
        self.keys = op.Range(zero, total, step)

    def pack(self, value: ir.Value) -> ir.Value:
        """[batch, sequence] with each row's real tokens in front."""
        return self._op.GatherElements(value, self._order, axis=1)

    def unpack(self, value: ir.Value) -> ir.Value:
        """[batch, sequence, width] with every token in its own place again."""
        op = self._op
        columns = op.Expand(self._columns, op.Shape(self._order))
        places = op.ScatterElements(self._order, self._order, columns, axis=1)
        axis = op.ints([2], f"width_{len(op.nodes)}")
        return op.GatherND(value, op.Unsqueeze(places, axis), batch_dims=1)

    def last(self, value: ir.Value, *, keep: bool) -> ir.Value:
        """[batch, 1, width], or [batch, width] unless `keep`: the row of the last real token."""
        op = self._op
        axis = op.ints([2], f"width_{len(op.nodes)}")
        return op.GatherND(value, op.Unsqueeze(self._last, axis) if keep else self._last, batch_dims=1)


class Lengths:
    """What the kernel must be told where no row has padding: each is as long as past and new tokens together.

    Attributes:
        lengths: int32 [batch], tokens of a row, less one.
        total: int32, past and new tokens.
    """

    def __init__(self, op: Builder, ids: ir.Value, past: ir.Value) -> None:
        int32 = ir.DataType.INT32.value
        total = op.Add(op.Shape(past, start=2, end=3), op.Shape(ids, start=1, end=2))
        self.total = op.Cast(op.Squeeze(total), to=int32)
        last = op.Cast(op.Sub(total, op.ints([1], "one")), to=int32)
        self.lengths = op.Expand(last, op.Shape(ids, start=0, end=1))
