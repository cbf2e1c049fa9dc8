"""Take queries, keys and values apart before they are cut into heads.

Before::

    x [batch, n, 3·h·d] ─ Reshape [batch, n, 3, h, d] ─ Transpose [3, batch, h, n, d] ─┬─ Gather(0) ─ q
                                                                                       ├─ Gather(1) ─ k
                                                                                       └─ Gather(2) ─ v

After::

    x ─ Split ─┬─ Reshape [batch, n, h, d] ─ Transpose ─ q
               ├─ Reshape ─ Transpose ─ k
               └─ Reshape ─ Transpose ─ v

Meets: timm's vision transformers (`qkv.reshape(...).permute(2, 0, 3, 1, 4).unbind(0)`), PP-OCR's recognition; any
    order of the axes, with and without a Transpose; parts taken by Gather, or by Slice or Split and a Squeeze.
Numerics: exact. Elements are moved.
Source: the packed axis lies outside of heads and sizes, so a part of it is a part of the last axis of x.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import Dim, attribute, constant, dims, integers, opset, rank
from onnxopt.graph.dimensions import copies_first_axis, named_axes
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant as any_constant
from onnxopt.rewrite.vocabulary import either
from onnxopt.spec import Exact

PACKED = 2  # of [batch, n, parts, heads, size]
TOKENS = 3  # axes of x
SIZES_ARE_AN_INPUT = 13


@dataclass(frozen=True)
class Packed:
    """Which of the parts is taken, how each is cut into heads, and the order of the axes that are left."""

    part: int
    parts: int
    heads: int
    size: int
    turned: tuple[int, ...]


@register
class SplitPackedHeads(Rule):
    """Transpose(Reshape(x))[i]  →  Transpose(Reshape(Split(x)[i]))."""

    name = "split-packed-heads"
    numerics = Exact()
    keeps_shared = True  # the other parts follow
    enables = ("fuse-attention", "fuse-attention-heads")

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Three ways to take a part, of the turned or the plain tensor."""
        split = op.Reshape(x, _rest=True, _name="reshape", _shared=True)
        turned = either(op.Transpose(split, _name="transpose", _shared=True), split)
        yield op.Gather(turned, any_constant("index"), _name="gather")
        sliced = op.Slice(turned, any_constant("starts"), any_constant("ends"), _rest=True, _name="slice")
        parts = op.Split(turned, _rest=True, _output=None, _name="parts", _shared=True)
        yield op.Squeeze(either(sliced, parts), _rest=True)

    def guard(self, match: Match, x: ir.Value) -> None:
        """The last axis of x is cut into parts, heads and sizes; one part is taken."""
        cut = dims(match.named["reshape"].outputs[0]) or ()
        match.needs(len(cut) == TOKENS + 2, "it is not cut into parts, heads and sizes")
        order = list(range(len(cut)))
        if "transpose" in match.named:
            order = list(attribute(match.named["transpose"], "perm") or reversed(order))
        part = _part(match, order.index(PACKED), cut[PACKED])
        match.needs(part is not None, "no part is taken")
        parts, heads, size = (dim if isinstance(dim, int) else 0 for dim in cut[PACKED:])
        match.needs(parts and heads and size, "heads and sizes are not known")
        match.require(rank(x) == TOKENS, f"x has rank {rank(x)}, needs {TOKENS}", x)
        before, reshape = dims(x) or (), match.named["reshape"]
        match.require(before[-1] == parts * heads * size, "the axes of x are cut otherwise", x)
        match.require(
            (before[:PACKED] == cut[:PACKED] and None not in before[:PACKED]) or copies_first_axis(reshape),
            "the leading axes are not known to stay",
            x,
        )
        turned = tuple(axis - (axis > PACKED) for axis in order if axis != PACKED)
        match.note(Packed(part or 0, parts, heads, size, turned))

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """The Split is the same for all parts, and merged later."""
        packed = match.noted(Packed)
        widths = [packed.heads * packed.size] * packed.parts
        if opset(match.model) < SIZES_ARE_AN_INPUT:
            taken = op.node("Split", [x], {"axis": PACKED, "split": widths}, outputs=len(widths))
        else:
            taken = op.node("Split", [x, op.ints(widths, "widths")], {"axis": PACKED}, outputs=len(widths))
        split = op.Reshape(taken[packed.part], op.ints([0, 0, packed.heads, packed.size], "heads"))
        return split if packed.turned == tuple(sorted(packed.turned)) else op.Transpose(split, perm=packed.turned)


def _part(match: Match, axis: int, parts: Dim) -> int | None:
    """Return which part along an axis the match takes, None when it takes no single one."""
    if not isinstance(parts, int):
        return None
    if "gather" in match.named:
        node, index = match.named["gather"], constant(match.values["index"])
        if index is None or index.ndim or attribute(node, "axis") % (TOKENS + 2) != axis:
            return None
        return int(index) % parts if -parts <= int(index) < parts else None
    squeezed = named_axes(match.root) or ()
    if [one % (TOKENS + 2) for one in squeezed] != [axis]:
        return None
    if "parts" in match.named:
        node = match.named["parts"]
        alone = len(node.outputs) == parts and attribute(node, "axis") % (TOKENS + 2) == axis
        return match.root.inputs[0].index() if alone and match.root.inputs[0] is not None else None
    return _sliced(match.named["slice"], axis, parts)


def _sliced(node: ir.Node, axis: int, parts: int) -> int | None:
    """Return the only element that a Slice takes of an axis, which it takes all of every other."""
    given = [*node.inputs[1:], None, None]
    starts, ends, axes, steps = (integers(value) for value in given[:4])
    if not starts or not ends or axes is None or len(starts) != 1 or axes[0] % (TOKENS + 2) != axis:
        return None
    if given[3] is not None and steps != (1,):
        return None
    start, end = (min(at + parts if at < 0 else at, parts) for at in (starts[0], ends[0]))
    return start if start >= 0 and end == start + 1 else None
