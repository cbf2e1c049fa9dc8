"""What masks look like in a graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.probe.sidegraph import is_contract
from onnxopt.rewrite import Builder
from onnxopt.rewrite.patterns import Ops, Pat, Var

LOWEST = float(
    np.finfo(np.float32).min
)  # added to the scores of masked keys; the kernel's own default of -1e4 leaves them a weight


def padding_mask(op: Ops, mask: Pat) -> Pat:
    """The canonical form, as later passes match it."""
    booleans = op.Cast(mask, to=ir.DataType.BOOL.value, _shared=True)
    return op.Expand(op.Unsqueeze(booleans, axes_1_2(), _shared=True), Var("mask_shape"), _shared=True)


def axes_1_2() -> Pat:
    """The constant [1, 2]."""
    from onnxopt.graph import integers
    from onnxopt.rewrite.patterns import Const

    return Const(lambda value: integers(value) == (1, 2), "the axes [1, 2]")


def raw_mask(op: Builder, keys: ir.Value) -> ir.Value:
    """int32 [batch, keys], which the kernel compares with 0.

    What need not be 0 and 1 goes by way of bool: int32 would cut ½, which allows its key, to 0, and -1 allows its key.
    """
    if not is_contract(keys):
        keys = op.Cast(keys, to=ir.DataType.BOOL.value)
    return op.Cast(keys, to=ir.DataType.INT32.value)
