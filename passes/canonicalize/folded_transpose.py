"""Transpose the last two axes where they are, without folding the axes in front of them into one.

Before::

    k [batch, heads, keys, size] ─ Reshape [batch·heads, keys, size] ─ Transpose(0 2 1) ─ Reshape ─ y

After::

    k ─ Transpose(0 1 3 2) ─ y

Meets: torch's decomposition of scaled_dot_product_attention in dynamo exports below opset 23.
Numerics: exact.
Source: ONNX operators Reshape-23 and Transpose-23; a Reshape that keeps the last two axes keeps each of its matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import dims, known_dims
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Exact


@dataclass(frozen=True)
class Turned:
    """The axes of x with the last two swapped."""

    perm: tuple[int, ...]


@register
class UnfoldTranspose(Rule):
    """Reshape(Transpose(Reshape(x), 0 2 1))  →  Transpose(x), with the last two axes swapped."""

    name = "unfold-transpose"
    numerics = Exact()
    enables = ("merge-transposes", "fuse-attention")
    keeps_shared = True  # the folded copies stay for their other readers

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Fold, swap, unfold."""
        folded = op.Reshape(x, _rest=True, _name="folded")
        yield op.Reshape(op.Transpose(folded, perm=(0, 2, 1)), _rest=True)

    def guard(self, match: Match, x: ir.Value) -> None:
        """Both Reshapes keep the two axes that are swapped, and the second brings the leading ones back."""
        shape = known_dims(x)
        match.require(shape is not None and len(shape) > 3, "x is not a batch of batches of matrices", x)
        leading, last = (shape or ())[:-2], (shape or ())[-2:]
        match.require((dims(match.named["folded"].outputs[0]) or ())[1:] == last, "the fold changes the matrices", x)
        match.require(
            dims(match.root.outputs[0]) == (*leading, *last[::-1]), "the axes are not unfolded again", match.root
        )
        match.note(Turned((*range(len(leading)), len(leading) + 1, len(leading))))

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """One node."""
        return op.Transpose(x, perm=match.noted(Turned).perm)
