"""Read ONNX Runtime's rotation of queries and keys as the standard one.

Before::

    x, positions, cos, sin ─ com.microsoft.RotaryEmbedding ─ y

After::

    x, cos, sin, positions ─ RotaryEmbedding ─ y

Meets: decoders that ONNX Runtime's transformers optimizer or its model builder wrote; positions per token, or one
    offset for all rows.
Numerics: reassociated.
Source: Su et al. 2021, arXiv:2104.09864; ONNX Runtime's operator RotaryEmbedding; ONNX operator RotaryEmbedding-23, its
    parts below that opset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import CONTRIB, dims, opset, rank
from onnxopt.passes.words.contrib import count_up, given, length_of, split_last, unsqueeze
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated


@dataclass(frozen=True)
class Heads:
    """How many heads, 0 where x may have an axis of them, of which size, how much of it turns, and whether in pairs."""

    count: int
    size: int
    turned: int
    paired: int


@register
class RaiseRotaryEmbedding(Rule):
    """com.microsoft RotaryEmbedding(x, positions, cos, sin)  →  RotaryEmbedding(x, cos, sin, positions)."""

    name = "raise-rotary-embedding"
    numerics = Reassociated(rtol=1e-5, atol=1e-6)

    def patterns(self, op: Ops, x: Pat, positions: Pat, cos: Pat, sin: Pat) -> Iterator[Pat]:
        """One kernel."""
        yield op.RotaryEmbedding(x, positions, cos, sin, _domain=CONTRIB)

    def guard(self, match: Match, x: ir.Value, positions: ir.Value, cos: ir.Value) -> None:
        """Tokens or heads of a known size; tables of one row per position."""
        node, table, shape = match.root, dims(cos) or (), dims(x) or ()
        match.require(not given(node, "is_packed_batching", 0), "its rows are packed")
        match.require(given(node, "scale", 1.0) in (0.0, 1.0), "it scales what it rotates")
        match.require(len(table) == 2 and isinstance(table[1], int), "the size of the table is not known", cos)
        match.require(rank(x) in (3, 4) and isinstance(shape[-1], int), "the size of heads is not known", x)
        match.require(rank(positions) in (1, 2), f"positions have rank {rank(positions)}", positions)
        turned = 2 * int(table[1] or 0)
        heads = given(node, "num_heads", 0) or (0 if rank(x) == 4 else int(shape[-1] or 0) // turned)
        match.require(rank(x) == 4 or heads, "the number of heads is not known", x)
        size = int(shape[-1] or 0) if rank(x) == 4 else int(shape[-1] or 0) // heads
        match.require(turned <= size, f"the tables turn {turned} of {size}", cos)
        paired = given(node, "interleaved", 0)
        match.require(not paired or opset(match.model) >= 23, f"opset {opset(match.model)} has no paired rotation")
        match.note(Heads(heads, size, turned, paired))

    def rewrite(
        self, op: Builder, match: Match, x: ir.Value, positions: ir.Value, cos: ir.Value, sin: ir.Value
    ) -> ir.Value:
        """A single position is that of the first token of every row."""
        heads, sequence = match.noted(Heads), (rank(x) or 3) - 2
        if rank(positions) == 1:
            row = op.Add(count_up(op, x, sequence, "places"), positions)
            shape = op.Concat(length_of(op, x, 0, "batch"), length_of(op, x, sequence, "sequence"), axis=0)
            positions = op.Expand(row, shape)
        if opset(op.model) >= 23:
            return op.RotaryEmbedding(
                x,
                cos,
                sin,
                positions,
                interleaved=heads.paired,
                num_heads=heads.count if rank(x) == 3 else None,
                rotary_embedding_dim=heads.turned if heads.turned < heads.size else None,
            )
        return _spelled(op, heads, x, positions, (cos, sin))


def _spelled(
    op: Builder, heads: Heads, x: ir.Value, positions: ir.Value, tables: tuple[ir.Value, ir.Value]
) -> ir.Value:
    """Turn the first half of what is turned against the second; tables are [batch, sequence, half]."""
    count, size, turned = heads.count, heads.size, heads.turned
    split = x if rank(x) == 4 else op.Reshape(x, op.ints([0, 0, count, size], "heads"))
    axis = 1 if rank(x) == 4 else 2
    cos, sin = (
        unsqueeze(op, op.Gather(table, positions, axis=0), [axis], f"{name}_axis")
        for table, name in zip(tables, ("cos", "sin"), strict=True)
    )
    half = turned // 2
    first, second, *rest = split_last(op, split, [half, half, *([size - turned] if turned < size else [])], "halves")
    left = op.Sub(op.Mul(first, cos), op.Mul(second, sin))
    right = op.Add(op.Mul(second, cos), op.Mul(first, sin))
    y = op.Concat(left, right, *rest, axis=-1)
    return y if rank(x) == 4 else op.Reshape(y, op.ints([0, 0, count * size], "tokens"))
