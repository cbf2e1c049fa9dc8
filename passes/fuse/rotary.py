"""Fuse a rotary position embedding into one RotaryEmbedding node.

Before::

    x ─┬──────────────────────────── Mul(cos) ─┐
       └─ Slice, Slice ─ Neg ─ Concat ─ Mul(sin) ─┴─ Add ─ y

After::

    cos, sin ─ Slice(half) ─┐
    x ──────────────────────┴─ RotaryEmbedding ─ y

Meets: Llama's halves, GPT-J's interleaved pairs, the halves apart of gpt-oss, whose tables have one entry per angle;
    all of a head or its first part; tables from positions times frequencies, or stored ones; one row for all or a row
    each.
Numerics: reassociated.
Source: Su et al. 2021, arXiv:2104.09864, eq. 34; ONNX operator RotaryEmbedding-23 without position ids. How the tables
    are spelled is not looked at: the side graph that computes them is run on several sizes, and must give every angle
    twice, in halves or in pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Dim, ancestors, attribute, dims, integers, is_op, known_dims, rank
from onnxopt.graph.cache import TOTAL
from onnxopt.probe.program import ProbeError
from onnxopt.probe.sidegraph import LARGEST, Probe, SideGraph, probes
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Miss, Ops, Pat, Var
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import FLOATS, constant
from onnxopt.spec import Array, Reassociated

SWAPPED = (0, 2, 1, 3)  # [batch, sequence, heads, size] <-> [batch, heads, sequence, size]
ENDLESS = 2**31 - 1
ROUNDING = 2.0**-22  # of a table: the runtime's cosine of one angle depends on its place among others by 2**-24


@dataclass(frozen=True)
class Turned:
    """Heads, how many of their entries are turned and how (in pairs), and how their tables are stored."""

    heads: ir.Value
    rotated: int
    paired: int
    twice: bool
    swapped: bool


@register
class FuseRotary(Rule):
    """x · cos + rotate(x) · sin  →  RotaryEmbedding(x, cos, sin)."""

    name = "fuse-rotary"
    min_opset = 23
    numerics = Reassociated(rtol=1e-5, atol=1e-6)
    enables = ("lower-cached-attention",)

    def patterns(self, op: Ops, x: Pat, cos: Pat, sin: Pat) -> Iterator[Pat]:
        """A part of a head is turned as a whole first, then joined with the rest."""
        yield from _turns(op, x, cos, sin)
        for part, rest in _two(op, Var("whole"), "part", "rest"):
            yield op.Concat(op.RotaryEmbedding(part, cos, sin, _name="turned"), rest, axis=_last)
            heads_first = op.RotaryEmbedding(op.Transpose(part, perm=SWAPPED), cos, sin, _name="turned")
            yield op.Concat(op.Transpose(heads_first, perm=SWAPPED, _name="swapped"), rest, axis=_last)

    def find(self, node: ir.Node, patterns: Sequence[Pat], model: ir.Model, miss: Miss) -> Iterator[Match]:
        """Take the tables into the match, so that the proof sees tables and not any numbers."""
        for found in super().find(node, patterns, model, miss):
            members: dict[ir.Node, None] = {}
            for table in (found.values["cos"], found.values["sin"]):
                members.update(dict.fromkeys(ancestors(table)[0] if table is not None else ()))
            if len(members) <= LARGEST:
                found.nodes = (*((member, True) for member in members), *found.nodes)
            yield found

    def guard(self, match: Match, cos: ir.Value, sin: ir.Value, x: ir.Value | None, whole: ir.Value | None) -> None:
        """Heads of four axes; tables that hold every angle twice."""
        heads = whole if whole is not None else x
        match.require(heads is not None and heads.dtype in FLOATS, "x is not a float tensor", heads)
        shape = dims(heads) or ()
        match.require(len(shape) == 4 and isinstance(shape[-1], int), "x is not [batch, heads, sequence, size]", heads)
        size = int(shape[-1] or 0)
        width = (dims(cos) or (None,))[-1]
        match.require(isinstance(width, int) and width == (dims(sin) or (None,))[-1], "the tables differ in width", cos)
        twice = "apart" not in match.named and whole is None
        rotated = int(width or 0) * (1 if twice else 2)
        paired = int("pairs" in match.named)
        if heads is None:
            return
        if whole is not None:
            parts = (_taken(match, "part", 0), _taken(match, "rest", 1))
            fits = parts == (range(rotated), range(rotated, size))
            match.require(fits, "the rest of a head is not what the tables leave", heads)
            paired = int(attribute(match.named["turned"], "interleaved"))
            match.note(Turned(heads, rotated, paired, twice=twice, swapped=False))
            return
        match.require(rotated == size, f"tables for {rotated} of {size} entries of a head", cos)
        self._turned(match, heads, rotated)
        tables = [dims(table) or () for table in (cos, sin)]
        # GPT-J turns [batch, sequence, heads, size]
        counted = isinstance(shape[2], int)
        swapped = counted and all(len(one) == 4 and _spans_heads(_swap(one), _swap(shape)) for one in tables)
        for table, one in zip((cos, sin), tables, strict=True):
            match.require(swapped or _spans_heads(one, shape), f"a table is {one}", table)
        reason = _repeats(match.model, cos, sin, pairs=bool(paired)) if twice else ""
        match.require(not reason, reason, cos)
        match.note(Turned(heads, rotated, paired, twice=twice, swapped=swapped))

    def _turned(self, match: Match, heads: ir.Value, rotated: int) -> None:
        """Require that the halves, or the pairs, of a head are turned against each other."""
        half = rotated // 2
        found = (_taken(match, "low", 0), _taken(match, "high", 1))
        if "pairs" not in match.named:
            match.require(found == (range(half), range(half, rotated)), "the parts are not the halves", heads)
            return
        match.require(found == (range(0, rotated, 2), range(1, rotated, 2)), "the parts are not the pairs", heads)
        pairs = dims(match.named["pairs"].inputs[0]) or (None,)
        match.require(pairs[-1] == 2, "the pairs do not stay together", heads)

    def rewrite(self, op: Builder, match: Match, cos: ir.Value, sin: ir.Value, whole: ir.Value | None) -> ir.Value:
        """The tables become [batch, sequence, angles]."""
        found = match.noted(Turned)
        paired = found.paired
        if whole is not None:
            heads = op.Transpose(whole, perm=SWAPPED) if "swapped" in match.named else whole
            turned = op.RotaryEmbedding(heads, cos, sin, interleaved=paired, rotary_embedding_dim=found.rotated)
            return op.Transpose(turned, perm=SWAPPED) if "swapped" in match.named else turned
        cut = None
        if found.twice:
            ends, step = (ENDLESS, 2) if paired else (found.rotated // 2, 1)
            cut = [op.ints([n], name) for n, name in ((0, "from"), (ends, "to"), (-1, "axis"), (step, "step"))]
        if found.swapped:
            tables = [_angles(op, table, cut, found.heads, heads_at=2) for table in (cos, sin)]
            turned = op.RotaryEmbedding(op.Transpose(found.heads, perm=SWAPPED), *tables, interleaved=paired)
            return op.Transpose(turned, perm=SWAPPED)
        tables = [_angles(op, table, cut, found.heads) for table in (cos, sin)]
        return op.RotaryEmbedding(found.heads, *tables, interleaved=paired)


def _two(op: Ops, x: Pat, first: str, second: str) -> Iterator[tuple[Pat, Pat]]:
    """Two parts of the last axis, as two Slices or one Split; the nodes get these names."""
    cuts = []
    for name in (first, second):
        bounds = [constant(f"{name}_{bound}") for bound in ("starts", "ends", "axes")]
        cuts.append(op.Slice(x, *bounds, _rest=True, _shared=True, _name=name))
    yield cuts[0], cuts[1]
    split = [op.Split(x, _rest=True, _shared=True, _output=n, _name=name) for n, name in enumerate((first, second))]
    yield split[0], split[1]


def _turns(op: Ops, x: Pat, cos: Pat, sin: Pat) -> Iterator[Pat]:
    """Every spelling of turning x, whose last axis is turned as a whole."""
    for low, high in _two(op, x, "low", "high"):
        yield op.Add(op.Mul(x, cos), op.Mul(op.Concat(op.Neg(high), low, axis=_last), sin))  # Llama
        first = op.Sub(op.Mul(low, cos), op.Mul(high, sin))
        second = op.Add(op.Mul(high, cos), op.Mul(low, sin))
        yield op.Concat(first, second, axis=_last, _name="apart")  # gpt-oss
        pair = op.Concat(op.Unsqueeze(op.Neg(high), _rest=True), op.Unsqueeze(low, _rest=True), axis=_last_of_five)
        yield op.Add(op.Mul(x, cos), op.Mul(op.Reshape(pair, _rest=True, _name="pairs"), sin))  # GPT-J


def _last(axis: int) -> bool:
    """The last of four axes."""
    return axis in (-1, 3)


def _last_of_five(axis: int) -> bool:
    """The last of five axes."""
    return axis in (-1, 4)


def _taken(match: Match, name: str, index: int) -> range | None:
    """Return which entries of the last axis a Slice takes, or a Split into two gives as an output."""
    node = match.named[name]
    size, last = (dims(node.inputs[0]) or (None,))[-1], (rank(node.inputs[0]) or 0) - 1
    if not isinstance(size, int):
        return None
    if is_op(node, "Split"):
        middle = (dims(node.outputs[0]) or (None,))[-1]
        if attribute(node, "axis") not in (-1, last) or len(node.outputs) != 2 or not isinstance(middle, int):
            return None
        return range(size)[slice(middle) if index == 0 else slice(middle, None)]
    start, end, axis, step = ([integers(value) for value in node.inputs[1:]] + [(1,)])[:4]
    if axis not in ((-1,), (last,)) or any(one is None or len(one) != 1 for one in (start, end, step)):
        return None
    return range(size)[slice(*(one[0] for one in (start, end, step) if one is not None))]


def _spans_heads(table: Sequence[object], heads: Sequence[object]) -> bool:
    """[batch or 1, 1, sequence, width], or without leading ones."""
    full = (*(1,) * (4 - len(table)), *table)
    return len(full) == 4 and full[1] == 1 and full[0] in (1, heads[0]) and full[2] == heads[2]


def _repeats(model: ir.Model, cos: ir.Value, sin: ir.Value, *, pairs: bool) -> str:
    """Return why tables do not hold every angle twice, empty when they do."""
    side = SideGraph(model, (cos, sin))
    if len(side.nodes) > LARGEST:
        return f"more than {LARGEST} nodes compute the tables"
    try:
        for probe in probes(with_past=True):
            given = {leaf: _numbers(leaf, probe) for leaf in side.read}
            for table in side.run(probe.sizes, given):
                first, second = (table[..., 0::2], table[..., 1::2]) if pairs else np.split(table, 2, axis=-1)
                if not np.allclose(first, second, rtol=0.0, atol=ROUNDING):
                    return f"the tables do not hold every angle twice ({probe})"
    except (ProbeError, KeyError, ValueError) as error:
        return f"the tables cannot be probed: {error}"
    return ""


def _numbers(leaf: ir.Value, probe: Probe) -> Array:
    """Return a padding mask, positions that rise from another start in every row, or any floats."""
    shape = [probe.sizes[dim] if isinstance(dim, str) else dim for dim in known_dims(leaf) or ()]
    if leaf.dtype in FLOATS:
        return np.random.default_rng(0).standard_normal(shape)
    if shape == list(probe.mask.shape) and (dims(leaf) or ())[-1] == TOTAL:
        return probe.mask
    return np.indices(shape)[-2:].sum(axis=0) if shape else np.array(1)


def _swap(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """[batch, sequence, heads, size] <-> [batch, heads, sequence, size]."""
    return tuple(shape[axis] for axis in SWAPPED)


def _angles(
    op: Builder, table: ir.Value, cut: list[ir.Value] | None, heads: ir.Value, *, heads_at: int = 1
) -> ir.Value:
    """[batch, sequence, angles] of a table, cut when it has two entries per angle; a row for all becomes a row each."""
    width, name, shape = rank(table) or 4, table.name, dims(heads) or (None,) * 4
    batch, sequence = shape[0], shape[3 - heads_at]
    for_all = width == 2 or (dims(table) or ())[0] != batch
    if cut is not None:
        table = op.Slice(table, *cut)
    if width == 4:
        table = op.Squeeze(table, op.ints([heads_at], f"heads_{name}"))
    elif width == 2:
        table = op.Unsqueeze(table, op.ints([0], f"batch_{name}"))
    if not for_all or batch == 1:
        return table
    if isinstance(batch, int):
        return op.Expand(table, op.ints([batch, 1, 1], f"rows_{name}"))
    if isinstance(batch, str) and isinstance(sequence, str):  # from an input, so that queries and keys share the table
        return op.Expand(table, op.dimensions([batch, sequence, 1], f"rows_{name}"))
    return op.Expand(table, op.Concat(op.Shape(heads, start=0, end=1), op.ints([1, 1], f"rows_{name}"), axis=0))
