"""Read ONNX Runtime's embedding kernel as look-ups, a sum and a normalization.

Before::

    ids, segments, tables, γ, β ─ com.microsoft.EmbedLayerNormalization ─ y, mask_index, sum

After::

    ids ─ Gather ─┐
    segments ─ Gather ─ Add ─ Add(Slice(positions)) = sum ─ LayerNormalization(γ, β) ─ y

Meets: BERT-like graphs that ONNX Runtime's session or its transformers optimizer wrote, with and without segments and
    position ids.
Numerics: reassociated. The kernel adds and sums in one pass.
Source: ONNX Runtime's operator EmbedLayerNormalization; its second output counts the ones of the mask per row, and is
    zero without a mask.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxopt.graph import CONTRIB, opset
from onnxopt.passes.words.contrib import given, layer_norm, length_of, require_wide, unsqueeze
from onnxopt.passes.words.norms import SKIP_EPSILON
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated


@register
class RaiseEmbedLayerNorm(Rule):
    """com.microsoft EmbedLayerNormalization(ids)  →  LayerNormalization(words[ids] + segments + positions)."""

    name = "raise-embed-layer-norm"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("lower-norm",)

    def patterns(
        self,
        op: Ops,
        ids: Pat,
        maybe_segments: Pat,
        words: Pat,
        positions: Pat,
        maybe_kinds: Pat,
        gamma: Pat,
        beta: Pat,
        maybe_mask: Pat,
        maybe_places: Pat,
    ) -> Iterator[Pat]:
        """One kernel with four optional inputs."""
        yield op.EmbedLayerNormalization(
            ids,
            maybe_segments,
            words,
            positions,
            maybe_kinds,
            gamma,
            beta,
            maybe_mask,
            maybe_places,
            _domain=CONTRIB,
            _name="embed",
        )

    def guard(self, match: Match, words: ir.Value, maybe_mask: ir.Value | None) -> None:
        """Half precision needs the operator; the count of a mask wants a switch per position."""
        require_wide(match, words, 17, "LayerNormalization")
        match.require(
            not _used(match, 1) or not given(match.root, "mask_index_type", 0) or maybe_mask is None,
            "the mask index is of another kind than a length",
        )

    def rewrite(
        self,
        op: Builder,
        match: Match,
        ids: ir.Value,
        maybe_segments: ir.Value | None,
        words: ir.Value,
        positions: ir.Value,
        maybe_kinds: ir.Value | None,
        gamma: ir.Value,
        beta: ir.Value,
        maybe_mask: ir.Value | None,
        maybe_places: ir.Value | None,
    ) -> tuple[ir.Value | None, ...]:
        """Without position ids every row counts from 0."""
        total = op.Gather(words, ids, axis=0)
        if maybe_segments is not None and maybe_kinds is not None:
            total = op.Add(total, op.Gather(maybe_kinds, maybe_segments, axis=0))
        if maybe_places is not None:
            total = op.Add(total, op.Gather(positions, maybe_places, axis=0))
        else:
            first, axis = op.ints([0], "first"), op.ints([0], "axis")
            rows = op.Slice(positions, first, length_of(op, ids, 1, "length"), axis)
            total = op.Add(total, unsqueeze(op, rows, [0], "one_row"))
        total.type = words.type
        normal = layer_norm(op, total, gamma, beta, given(match.root, "epsilon", SKIP_EPSILON))
        index = _mask_index(op, ids, maybe_mask) if _used(match, 1) else None
        return (normal, index, total if _used(match, 2) else None)[: len(match.root.outputs)]


def _used(match: Match, index: int) -> bool:
    outputs = match.root.outputs
    return len(outputs) > index and bool(outputs[index].uses() or outputs[index].is_graph_output())


def _mask_index(op: Builder, ids: ir.Value, mask: ir.Value | None) -> ir.Value:
    """int32 [batch]: how many ones a row of the mask has."""
    if mask is None:
        zero = op.constant(np.array(0, np.int32), "zero")
        return op.Expand(zero, length_of(op, ids, 0, "batch"))
    ones = op.Cast(op.Equal(mask, op.constant(np.array(1, np.int32), "one")), to=ir.DataType.INT32.value)
    if opset(op.model) < 13:
        return op.ReduceSum(ones, axes=[1], keepdims=0)
    return op.ReduceSum(ones, op.ints([1], "keys"), keepdims=0)
