"""Look positions up in the table itself instead of through a table of indices.

Before::

    [0 1 2 …] ─ Slice(0 : sequence) ─┐
    table ───────────────────────────┴─ Gather ─ y

After::

    table[[0 1 2 …]] ─ Slice(0 : sequence) ─ y

Meets: BERT-like models, whose position ids are a buffer, in every exporter.
Numerics: exact.
Source: Gather commutes with a Slice of its indices; the gathered table is only made when it is not larger than the
    table.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxopt.graph import attribute, constant
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant as any_constant
from onnxopt.spec import Exact


@register
class SlicePositionTable(Rule):
    """Gather(T, Slice(I))  →  Slice(T[I]), for constants T and I."""

    name = "slice-position-table"
    numerics = Exact()

    def patterns(self, op: Ops, starts: Pat, ends: Pat, axes: Pat, maybe_steps: Pat) -> Iterator[Pat]:
        """The look-up, with the axes of the slice written out."""
        indices = op.Slice(any_constant("indices"), starts, ends, axes, maybe_steps)
        yield op.Gather(any_constant("table"), indices, axis=0)

    def guard(self, match: Match, axes: ir.Value) -> None:
        """The gathered table must not be larger than the table."""
        table, indices, sliced = match.array("table"), match.array("indices"), constant(axes)
        match.require(sliced is not None and (sliced >= 0).all(), "the sliced axes are not constant and positive")
        match.require(indices.size <= table.shape[0], "the gathered table would be larger than the table")
        match.require(
            indices.size and indices.min() >= 0 and indices.max() < table.shape[0], "an index lies outside the table"
        )
        match.require(attribute(match.root, "axis") == 0, "gathers along another axis")

    def rewrite(
        self, op: Builder, match: Match, starts: ir.Value, ends: ir.Value, axes: ir.Value, maybe_steps: ir.Value | None
    ) -> ir.Value:
        """Gather once, now."""
        gathered = np.take(match.array("table"), match.array("indices"), axis=0)
        return op.Slice(op.constant(gathered, "table"), starts, ends, axes, maybe_steps)
