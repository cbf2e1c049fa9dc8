"""Fuse a rotary position embedding into one RotaryEmbedding node.

Before::

    x ─┬──────────────────────────── Mul(cos) ─┐
       └─ Slice, Slice ─ Neg ─ Concat ─ Mul(sin) ─┴─ Add ─ y

After::

    cos, sin ─ Slice(half) ─┐
    x ──────────────────────┴─ RotaryEmbedding ─ y

Meets: Llama's halves, GPT-J's interleaved pairs, the halves apart of gpt-oss; all of a head or its first part; tables
    from positions times frequencies, or stored ones.
Numerics: reassociated.
Source: Su et al. 2021, arXiv:2104.09864, eq. 34; ONNX operator RotaryEmbedding-23 without position ids. How the tables
    are spelled is not looked at: the side graph that computes them is run on several sizes, and must give every angle
    twice, in halves or in pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.graph import ancestors, dims, integers, known_dims, rank
from onnxopt.model import Array
from onnxopt.patterns import FLOATS, Miss, Ops, Pat, Var, constant
from onnxopt.probe import ProbeError
from onnxopt.rewrite import Builder, Match, Reassociated, Rule, register
from onnxopt.sidegraph import LARGEST, SideGraph, probes

ENDLESS = 2**31 - 1


@register
class FuseRotary(Rule):
    """x · cos + rotate(x) · sin  →  RotaryEmbedding(x, cos, sin)."""

    name = "fuse-rotary"
    min_opset = 23
    numerics = Reassociated(rtol=1e-5, atol=1e-6)
    enables = ("lower-cached-attention",)

    def patterns(self, op: Ops, x: Pat, cos: Pat, sin: Pat) -> Iterator[Pat]:
        """Parts of heads before whole ones, so that the rest of a head is found."""
        part = op.Slice(Var("whole"), constant("starts"), constant("ends"), constant("axes"), _rest=True, _name="cut")
        rest = op.Slice(Var("whole"), constant("rest_starts"), constant("rest_ends"), constant("rest_axes"), _rest=True)
        split = [op.Split(Var("whole"), _rest=True, _output=index, _name="parts") for index in range(2)]
        for first, last in ((part, rest), (split[0], split[1])):
            for turned in _turns(op, first, cos, sin):
                yield op.Concat(turned, last, axis=_last)
        yield from _turns(op, x, cos, sin)

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
        size = shape[-1]
        halves = "half" in match.values  # the tables have one entry per angle
        width = (dims(cos) or (None,))[-1]
        match.require(isinstance(width, int) and width == (dims(sin) or (None,))[-1], "the tables differ in width", cos)
        rotated = int(width) * (2 if halves else 1)  # type: ignore[arg-type]  # required above
        if whole is not None:
            match.require(_cut_at(match) == rotated, "the rest of a head is not what the tables leave", heads)
        else:
            match.require(rotated == size, f"tables for {rotated} of {size} entries of a head", cos)
        for table in (cos, sin):
            match.require(_spans_heads(dims(table) or (), shape), f"a table is {dims(table)}", table)
        interleaved = "pairs" in match.named
        if not halves:
            reason = _repeats(match.model, cos, sin, pairs=interleaved)
            match.require(not reason, reason, cos)
        match.facts.update(rotated=rotated, size=size, interleaved=interleaved, halves=halves)

    def rewrite(
        self, op: Builder, match: Match, cos: ir.Value, sin: ir.Value, x: ir.Value | None, whole: ir.Value | None
    ) -> ir.Value:
        """The tables become [batch, sequence, angles]."""
        facts = match.facts
        step = 2 if facts["interleaved"] else 1
        ends = ENDLESS if facts["interleaved"] else facts["rotated"] // 2
        cut = None
        if not facts["halves"]:
            cut = [op.ints([n], name) for n, name in ((0, "from"), (ends, "to"), (-1, "axis"), (step, "step"))]
        tables = [_angles(op, table, cut) for table in (cos, sin)]
        partial = facts["rotated"] if facts["rotated"] != facts["size"] else None
        return op.RotaryEmbedding(
            whole if whole is not None else x,
            *tables,
            interleaved=int(facts["interleaved"]),
            rotary_embedding_dim=partial,
        )


def _turns(op: Ops, x: Pat, cos: Pat, sin: Pat) -> Iterator[Pat]:
    """Every spelling of turning x, whose last axis is turned as a whole."""
    low = op.Slice(x, constant("low_starts"), constant("low_ends"), constant("low_axes"), _rest=True, _shared=True)
    high = op.Slice(x, constant("high_starts"), constant("high_ends"), constant("high_axes"), _rest=True, _shared=True)
    first, second = (op.Split(x, _rest=True, _shared=True, _output=index, _name="halves") for index in range(2))
    for a, b in ((low, high), (first, second)):
        yield op.Add(op.Mul(x, cos), op.Mul(op.Concat(op.Neg(b), a, axis=_last), sin))
    pair = op.Concat(op.Unsqueeze(op.Neg(high), _rest=True), op.Unsqueeze(low, _rest=True), axis=_last_of_five)
    yield op.Add(op.Mul(x, cos), op.Mul(op.Reshape(pair, _rest=True, _name="pairs"), sin))


def _last(axis: int) -> bool:
    """The last of four axes."""
    return axis in (-1, 3)


def _last_of_five(axis: int) -> bool:
    """The last of five axes."""
    return axis in (-1, 4)


def _cut_at(match: Match) -> int | None:
    """Return where a head is cut into the part that is turned and the rest, None when the two are not the whole."""
    values, size = match.values, (dims(match.values["whole"]) or (None,))[-1]
    if "cut" not in match.named:
        width = (dims(match.named["parts"].outputs[0]) or (None,))[-1]
        return width if isinstance(width, int) else None
    starts, ends = integers(values["starts"]), integers(values["ends"])
    rest, stop = integers(values["rest_starts"]), integers(values["rest_ends"])
    axes = {integers(values[name]) for name in ("axes", "rest_axes")}
    if starts != (0,) or ends is None or rest != ends or stop is None or not axes <= {(-1,), (3,)}:
        return None
    return ends[0] if isinstance(size, int) and (stop[0] >= size) else None


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
            given = {
                leaf: probe.mask if (dims(leaf) or ())[-1:] == ("total_sequence",) else _counted(leaf, probe.sizes)
                for leaf in side.read
                if len(dims(leaf) or ()) == 2
            }
            for table in side.run(probe.sizes, given):
                first, second = (table[..., 0::2], table[..., 1::2]) if pairs else np.split(table, 2, axis=-1)
                if not np.array_equal(first, second):
                    return f"the tables do not hold every angle twice ({probe})"
    except (ProbeError, KeyError, ValueError) as error:
        return f"the tables cannot be probed: {error}"
    return ""


def _counted(leaf: ir.Value, sizes: Mapping[str, int]) -> Array:
    """Return positions, rising from another start in every row."""
    rows, columns = (sizes[dim] if isinstance(dim, str) else int(dim) for dim in known_dims(leaf) or ())
    return np.arange(columns)[None] + np.arange(rows)[:, None]


def _angles(op: Builder, table: ir.Value, cut: list[ir.Value] | None) -> ir.Value:
    """[batch, sequence, angles] of a table, cut when it has two entries per angle."""
    width = rank(table) or 4
    if cut is not None:
        table = op.Slice(table, *cut)
    if width == 4:
        return op.Squeeze(table, op.ints([1], f"heads_{table.name}"))
    return op.Unsqueeze(table, op.ints([0], f"batch_{table.name}")) if width == 2 else table
