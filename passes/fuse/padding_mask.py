"""Recognise a padding mask by what it does, and write it in one canonical way.

Before::

    attention_mask ─ Cast … Range, GreaterOrEqual, GatherND, And, Expand, Where(0, -inf) … ─ Attention

After::

    attention_mask ─ Cast(bool) ─ Unsqueeze ─ Expand [batch, 1, queries, keys] ─ Attention

Meets: every exporter and every year of transformers; the spelling is not looked at.
Numerics: reassociated. On rows that may attend to something the weights of masked keys are zero either way.
Source: the subgraph that computes the mask is cut out and run on probe masks (right, left, no padding, holes, an empty
    row; several
    sizes) and must allow exactly the keys whose attention_mask is not 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.graph import ancestors, dims, is_constant, known_dims, number, rank, region
from onnxopt.model import Array
from onnxopt.patterns import Miss, Ops, Pat, State, Var
from onnxopt.patterns import match as match_pattern
from onnxopt.probe import ProbeError, RegionRunner
from onnxopt.rewrite import Builder, Match, Reassociated, Rule, register

MASKED_BELOW = -1e4  # additive masks use -10000 (BERT of 2018), finfo.min or -inf
PROBE_SIZES = ((1, 1), (2, 5), (3, 8), (4, 37))  # batch, sequence
LARGEST_SUBGRAPH = 200
LONGEST_PROBE = 2050  # [2050, 2050] int64 positions take 32 MiB
LARGEST_POSITION = 2**24  # beyond, a number is no position but finfo.min or the end of a Slice
COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "Clip", "Min", "Max", "Trilu")


def padding_mask(op: Ops, mask: Pat) -> Pat:
    """The canonical form, as later passes match it."""
    booleans = op.Cast(mask, to=ir.DataType.BOOL.value, _shared=True)
    return op.Expand(op.Unsqueeze(booleans, axes_1_2(), _shared=True), Var("mask_shape"), _shared=True)


def axes_1_2() -> Pat:
    """The constant [1, 2]."""
    from onnxopt.graph import integers
    from onnxopt.patterns import Const

    return Const(lambda value: integers(value) == (1, 2), "the axes [1, 2]")


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
            members = ancestors(mask)[0] if mask is not None else []
            if len(members) <= LARGEST_SUBGRAPH:
                found.nodes = (*((member, True) for member in members), *found.nodes)
            yield found

    def guard(self, match: Match, mask: ir.Value) -> None:
        """The mask must depend on one input only, and be a padding mask on every probe."""
        canonical = padding_mask(Ops(), Var("input"))
        match.needs(not any(match_pattern(canonical, mask, State(), Miss())), "the mask is canonical")
        match.require(len(match.nodes) > 1, f"more than {LARGEST_SUBGRAPH} nodes compute the mask", mask)
        _, leaves = ancestors(mask, through_shape=False)
        match.require(
            len(leaves) == 1 and leaves[0].is_graph_input(),
            f"the mask depends on {', '.join(leaf.name or '' for leaf in leaves) or 'no input'}",
            mask,
        )
        source = leaves[0]
        shape = known_dims(source) or ()
        match.require(
            len(shape) == 2 and all(isinstance(dim, str) for dim in shape),
            f"{source.name} is not [batch, keys]",
            source,
        )
        verdict = mask.meta.get(self.name)
        if verdict is None:
            verdict = mask.meta[self.name] = _differs(match.model, mask, source)
        match.require(not verdict, str(verdict), mask)
        match.facts["source"] = source

    def rewrite(self, op: Builder, match: Match, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """Write [batch, 1, queries, keys] booleans."""
        source = match.facts["source"]
        booleans = op.Cast(source, to=ir.DataType.BOOL.value)
        batch, keys = op.Shape(source, start=0, end=1), op.Shape(source, start=1, end=2)
        shape = op.Concat(batch, op.ints([1], "one"), keys, keys, axis=0)
        mask = op.Expand(op.Unsqueeze(booleans, op.ints([1, 2], "axes")), shape)
        attributes = {name: attr.value for name, attr in match.root.attributes.items()}
        return op.Attention(q, k, v, mask, **attributes)


def _differs(model: ir.Model, mask: ir.Value, source: ir.Value) -> str:
    """Return why a mask is not the padding mask of `source`, empty when it is."""
    nodes, leaves = ancestors(mask)
    part = region(nodes, [mask])
    try:
        runner = RegionRunner([part], model)
        for batch, length in PROBE_SIZES:
            for kind, rows in _probes(batch, length):
                values = {leaf: _fill(leaf, source, rows) for leaf in leaves}
                reason = _compare(runner.run(values)[0], rows)
                if reason:
                    return f"not a padding mask: {reason} (batch {batch}, sequence {length}, {kind})"
        for length in _telling_lengths(ancestors(mask, through_shape=False)[0]):
            if length > LONGEST_PROBE:
                return f"the mask compares with a number or a table that asks for a probe of {length} keys"
            rows = np.ones((1, length), np.int64)
            reason = _compare(runner.run({leaf: _fill(leaf, source, rows) for leaf in leaves})[0], rows)
            if reason:
                return f"not a padding mask: {reason} (batch 1, sequence {length}, no padding)"
    except (ProbeError, KeyError, ValueError) as error:
        return f"the mask cannot be probed: {error}"
    return ""


def _telling_lengths(nodes: Sequence[ir.Node]) -> list[int]:
    """Return the lengths, longer than the usual probes, from which on a window or a stored table would show.

    A window of 64 keys looks like no window at 37. Its size is a constant ahead of a comparison. What is only measured,
    an embedding behind a Shape say, does not count.
    """
    lengths: set[int] = set()
    for node in nodes:
        tables = [value for value in node.inputs if is_constant(value) and (rank(value) or 0) > 1]
        lengths.update(dim for table in tables for dim in dims(table) or () if isinstance(dim, int))
        if node.op_type in COMPARISONS:
            ahead = [
                node,
                *(
                    member
                    for value in node.inputs
                    if value is not None
                    for member in ancestors(value, through_shape=False)[0]
                ),
            ]
            found = [number(value) for member in ahead for value in member.inputs]
            lengths.update(int(abs(size)) + 2 for size in found if size is not None and abs(size) < LARGEST_POSITION)
    return sorted(length for length in lengths if length > PROBE_SIZES[-1][1])


def _probes(batch: int, length: int) -> Iterator[tuple[str, Array]]:
    """Yield int64 [batch, length] masks."""
    generator = np.random.default_rng(length)
    full = np.ones((batch, length), np.int64)
    yield "no padding", full
    right, left, holes, empty = full.copy(), full.copy(), full.copy(), full.copy()
    for row in range(batch):
        pads = (row * length) // (batch + 1)
        right[row, length - pads :] = 0
        left[row, :pads] = 0
        holes[row] = generator.integers(0, 2, length)
        holes[row, row % length] = 1
    empty[-1] = 0
    yield from (("right padding", right), ("left padding", left), ("holes", holes), ("an empty row", empty))


def _fill(leaf: ir.Value, source: ir.Value, rows: Array) -> Array:
    """Return the probe itself for the mask, and any array of a fitting shape for inputs that are only measured."""
    if leaf is source:
        kind = (leaf.dtype or ir.DataType.INT64).numpy()
        return rows.astype(kind)
    axes = dict(zip(known_dims(source) or (), rows.shape, strict=True))
    shape = [axes[dim] if isinstance(dim, str) else dim for dim in dims(leaf) or () if dim is not None]
    return np.ones(shape, (leaf.dtype or ir.DataType.INT64).numpy())


def _compare(found: Array, rows: Array) -> str:
    batch, length = rows.shape
    wanted = np.broadcast_to(rows[:, None, None, :] != 0, (batch, 1, length, length))
    try:
        full = np.broadcast_to(found, wanted.shape)
    except ValueError:
        return f"its shape is {list(found.shape)}"
    if full.dtype == np.bool_:
        return "" if np.array_equal(full, wanted) else "it allows other keys"
    if np.any(full[wanted] != 0):
        return "it adds something to allowed keys"
    return "" if np.all(full[~wanted] <= MASKED_BELOW) else "masked keys keep a weight"
