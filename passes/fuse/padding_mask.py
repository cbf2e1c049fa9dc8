"""Recognise a padding mask by what it does, and write it in one canonical way.

Before::

    attention_mask ─ Cast … Range, GreaterOrEqual, GatherND, And, Expand, Where(0, -inf) … ─ Attention

After::

    attention_mask ─ Cast(bool) ─ Unsqueeze ─ Expand [batch, 1, queries, keys] ─ Attention

Meets: every exporter and every year of transformers; the spelling is not looked at.
Numerics: reassociated. On rows that may attend to something the weights of masked keys are zero either way, but behind
    -10000, which a score of 12,000 outweighs. So the number by which keys are hidden is part of the canonical form
    where there is one (Where(mask, 0, number), no less than -1e30), and the kernel adds it: a row without a key keeps
    its answer as well, the weights of its scores or, far below, equal ones.
Source: the subgraph that computes the mask is cut out and run on probe masks (right, left, no padding, holes, an empty
    row; several sizes) and must allow exactly the keys whose attention_mask is not 0. In a graph that was exported from
    a checkpoint a mask of integers or flags holds 0 and 1, as tokenizers write it and transformers asks for it, and a
    row that it leaves nothing is one of padding, whose answer means nothing; so it is in a decoder with a cache. Nobody
    has said either of floats, or of any mask of another file: such a mask must allow the same keys for a half, for 2
    and for -1, as it does behind a Cast to bool, and hide the others by false, by -inf, or by one number. `(1 - mask)`
    times a number stays as it is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import ancestors, dims, has_few_ancestors, known_dims, rank
from onnxopt.graph.cache import TOTAL
from onnxopt.passes.words.masks import padding_mask
from onnxopt.passes.words.scores import hides_for_good, kind_of, out_of_reach
from onnxopt.probe.sidegraph import LARGEST, MaskMeaning, is_contract, meaning_of_mask
from onnxopt.rewrite import Builder, Match, Refusal, Rule
from onnxopt.rewrite.patterns import Miss, Ops, Pat, State, Var
from onnxopt.rewrite.patterns import match as match_pattern
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import scalar
from onnxopt.spec import Reassociated


@dataclass(frozen=True)
class Padding:
    """The mask of the tokens, and the number that hidden keys get where they get one."""

    source: ir.Value
    fill: float | None


def padding_bias(op: Ops, mask: Pat) -> Pat:
    """The canonical form where hidden keys get a number by which rows that see nothing have an answer."""
    return op.Where(padding_mask(op, mask), scalar(0.0), scalar(name="fill"), _shared=True)


@register
class FusePaddingMask(Rule):
    """Attention(q, k, v, f(attention_mask))  →  Attention(q, k, v, attention_mask ≠ 0)."""

    name = "fuse-padding-mask"
    min_opset = 23
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("lower-attention",)
    keeps_shared = True

    def patterns(self, op: Ops, q: Pat, k: Pat, v: Pat, mask: Pat) -> Iterator[Pat]:
        """Any attention with a mask and without a cache."""
        yield op.Attention(q, k, v, mask)

    def find(self, node: ir.Node, patterns: Sequence[Pat], model: ir.Model, miss: Miss) -> Iterator[Match]:
        """Take the subgraph of the mask into the match, so that the proof covers it."""
        for found in super().find(node, patterns, model, miss):
            mask = found.values["mask"]
            few = mask is not None and has_few_ancestors(mask, LARGEST)
            members = ancestors(mask)[0] if mask is not None and few else []
            found.nodes = (*((member, True) for member in members), *found.nodes)
            yield found

    def guard(self, match: Match, mask: ir.Value) -> None:
        """The mask must depend on one input only, and be a padding mask on every probe."""
        for canonical in (padding_mask, padding_bias):
            pattern = canonical(Ops(), Var("input"))
            match.needs(not any(match_pattern(pattern, mask, State(), Miss())), "the mask is canonical")
        match.require(len(match.nodes) > 1, f"more than {LARGEST} nodes compute the mask", mask)
        meaning = meaning_of_mask(match.model, mask)
        if not isinstance(meaning, MaskMeaning):
            raise Refusal(meaning, mask.name or "")
        match.require(not meaning.causal, "the mask is causal", mask)
        match.require(not meaning.window, f"the mask is a window of {meaning.window} keys", mask)
        match.require(not meaning.slopes, "keys get a bias by their place", mask)
        match.require((known_dims(meaning.source) or ())[1:] != (TOTAL,), "the mask covers a cache", mask)
        if is_contract(meaning.source) and meaning.fill is None:
            far = hides_for_good(match.root, meaning.distance)
            match.require(far, "hidden keys get several numbers, and a score may outweigh them", mask)
        fill = None if meaning.fill is None else max(meaning.fill, -out_of_reach(kind_of(match.root)))
        match.note(Padding(meaning.source, fill))

    def rewrite(self, op: Builder, match: Match, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """Write [batch, 1, queries, keys] booleans."""
        padding = match.noted(Padding)
        source = padding.source
        booleans = op.Cast(source, to=ir.DataType.BOOL.value)
        batch, keys = op.Shape(source, start=0, end=1), op.Shape(source, start=1, end=2)
        axis = -2
        axis += rank(q) or 0  # of the queries; those of a decoder that looks across are not as many as the keys
        queries = keys if (dims(q) or ())[axis] == (dims(source) or ())[1] else op.Shape(q, start=axis, end=axis + 1)
        shape = op.Concat(batch, op.ints([1], "one"), queries, keys, axis=0)
        mask = op.Expand(op.Unsqueeze(booleans, op.ints([1, 2], "axes")), shape)
        if padding.fill is not None:
            kind = kind_of(match.root)
            zero = op.constant(np.zeros((), kind), "zero")
            fill = op.constant(np.array(padding.fill, kind), "fill")
            mask = op.Where(mask, zero, fill)
        attributes = {name: attr.value for name, attr in match.root.attributes.items()}
        return op.Attention(q, k, v, mask, **attributes)
