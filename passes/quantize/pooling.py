"""Sum the tokens of a pooling one after the other, so that padding behind them changes no bit of the result.

Before::

    mask [batch, 1, sequence] ─ MatMul(hidden [batch, sequence, d]) ─ y [batch, 1, d]

After::

    hidden ─ Mul(Transpose(mask)) ─ CumSum(axis 1) ─ Slice(last) ─ y

Meets: the result of fuse-mean-pooling, in graphs whose layers are quantized on fixed grids: there it is the only sum
    over positions whose order depends on how many there are.
Numerics: reassociated. The same products, added in the order of the tokens.
Source: our measurement (onnxruntime 1.32): the runtime's product adds in groups, which differ with the length of a row,
    and its ReduceSum has another order for one text than for many. CumSum adds row to row, by definition; 0.1 ms for
    8 texts of 128 tokens, where the product takes 0.02 ms.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxopt.graph import dims, is_constant
from onnxopt.qmath.precision import Plan
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated


@register
class SumTokensInOrder(Rule):
    """mask[b, 1, s] @ hidden[b, s, :]  →  Σₛ hidden[b, s, :] · mask[b, s]."""

    name = "sum-tokens-in-order"
    min_opset = 13
    numerics = Reassociated(rtol=2e-5, atol=2e-6)

    def __init__(self, plan: Plan | None = None) -> None:
        """Take the plan: only where layers are quantized on fixed grids is there something to keep."""
        self.static = any(planned.precision.kind == "int8" for _, planned in plan or Plan())

    def patterns(self, op: Ops, mask: Pat, hidden: Pat) -> Iterator[Pat]:
        """One product of two computed tensors."""
        yield op.MatMul(mask, hidden)

    def guard(self, match: Match, mask: ir.Value, hidden: ir.Value) -> None:
        """One row of weights per text, one weight per token."""
        left, right = dims(mask) or (), dims(hidden) or ()
        match.needs(self.static, "nothing is quantized on fixed grids")
        match.needs(not is_constant(mask) and not is_constant(hidden), "a linear layer")
        match.needs(len(left) == len(right) == 3 and left[1] == 1, "not one row of weights per text")
        match.needs(left[0] == right[0] and left[2] == right[1] and isinstance(left[2], str), "not a sum over tokens")

    def rewrite(self, op: Builder, mask: ir.Value, hidden: ir.Value) -> ir.Value:
        """The last of the running sums."""
        weighed = op.Mul(hidden, op.Transpose(mask, perm=[0, 2, 1]))
        running = op.CumSum(weighed, op.constant(np.array(1, np.int64), "tokens"))
        last, end, axis = (op.ints([number], name) for number, name in ((-1, "last"), (2**31, "end"), (1, "axis")))
        return op.Slice(running, last, end, axis)
