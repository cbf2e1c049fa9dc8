"""Read a dimension with one Shape, from a graph input where one has it.

Before::

    hidden ─ Shape ─ Gather(1) ─ Unsqueeze ─ [sequence]

After::

    input_ids ─ Shape(start=1, end=2) ─ [sequence]

Meets: TorchScript exports, which ask intermediate tensors for their size in every layer.
Numerics: exact.
Source: ONNX operator Shape-15; the dimensions are derived for every size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import attribute, dims, integers, known_dims
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.rewrite.vocabulary import constant
from onnxopt.spec import Exact


@dataclass(frozen=True)
class Span:
    """The axes of x that are read, from the first to behind the last."""

    start: int
    end: int


@register
class ReadDimension(Rule):
    """Unsqueeze(Gather(Shape(x), i))  →  Shape(x, start=i, end=i+1)."""

    name = "read-dimension"
    min_opset = 15
    numerics = Exact()
    enables = ("read-dimension-from-input",)
    keeps_shared = True

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """The index as a scalar with an Unsqueeze, or as a list without one; a part of the shape by a Slice."""
        yield op.Unsqueeze(op.Gather(op.Shape(x, _name="shape"), constant("index"), axis=0), constant("axes"))
        yield op.Gather(op.Shape(x, _name="shape"), constant("index"), axis=0)
        yield op.Slice(op.Shape(x, _name="shape"), constant("from"), constant("to"), _rest=True)

    def guard(self, match: Match, x: ir.Value) -> None:
        """Neighbours in the whole shape, and a list as the result."""
        rank = len(dims(x) or ())
        match.require(rank, "the rank is not known", x)
        shape = match.named["shape"]
        match.require(
            not attribute(shape, "start") and attribute(shape, "end") in (None, rank), "a part of the shape", x
        )
        if "from" in match.values:
            start, end = integers(match.values["from"]), integers(match.values["to"])
            steps = integers(match.root.inputs[4]) if len(match.root.inputs) > 4 else (1,)
            whole = start is not None and end is not None and steps == (1,)
            match.require(whole, "not neighbours in a known order", x)
            found = range(rank)[slice((start or (0,))[0], (end or (0,))[0])]
        else:
            index = integers(match.values["index"])
            match.require(index is not None and len(index) == 1, "not one dimension", x)
            match.require(dims(match.root.outputs[0]) == (1,), "the result is not a list of one", match.root)
            place = (index or (0,))[0] % rank
            found = range(place, place + 1)
        match.require(len(found) > 0, "no dimension at all", x)
        match.note(Span(found.start, found.stop))

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """One node."""
        span = match.noted(Span)
        return op.Shape(x, start=span.start, end=span.end)


@dataclass(frozen=True)
class Sizes:
    """The sizes that are read."""

    sizes: tuple[int, ...]


@register
class ReadKnownDimension(Rule):
    """Shape(x)  →  a constant, where every size is known."""

    name = "read-known-dimension"
    numerics = Exact()
    enables = ("fold-constants",)

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Any Shape."""
        yield op.Shape(x)

    def guard(self, match: Match, x: ir.Value) -> None:
        """Sizes, not axes."""
        shape = known_dims(x)
        match.needs(shape is not None, "the shape is not known")
        start, end = _bounds(match.root, len(shape or ()))
        wanted = (shape or ())[start:end]
        match.needs(all(isinstance(dim, int) for dim in wanted), "an axis is dynamic")
        match.needs(not match.root.outputs[0].is_graph_output(), "the shape is an output")
        match.note(Sizes(tuple(dim for dim in wanted if isinstance(dim, int))))

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        """Say it."""
        return op.ints(match.noted(Sizes).sizes, "sizes")


@dataclass(frozen=True)
class Asked:
    """The graph input that has the axes, and which of its axes they are."""

    source: ir.Value
    start: int
    end: int


@register
class ReadDimensionFromInput(Rule):
    """Shape(hidden)  →  Shape(graph input with the same axes)."""

    name = "read-dimension-from-input"
    min_opset = 15
    numerics = Exact()

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Any Shape."""
        yield op.Shape(x)

    def guard(self, match: Match, x: ir.Value) -> None:
        """Named axes in a row that one input has in a row too."""
        match.needs(not x.is_graph_input(), "it reads an input already")
        shape = known_dims(x)
        match.require(shape is not None, "the shape is not known", x)
        rank = len(shape or ())
        start, end = _bounds(match.root, rank)
        wanted = (shape or ())[start:end]
        match.require(
            wanted and all(isinstance(dim, str) for dim in wanted), "it reads sizes that are not axes of inputs", x
        )
        for value in match.model.graph.inputs:
            have = known_dims(value) or ()
            for axis in range(len(have) - len(wanted) + 1):
                if have[axis : axis + len(wanted)] == wanted:
                    match.note(Asked(value, axis, axis + len(wanted)))
                    return
        match.require(condition=False, reason=f"no input has the axes {list(wanted)}", where=x)

    def rewrite(self, op: Builder, match: Match) -> ir.Value:
        """Ask the input."""
        asked = match.noted(Asked)
        return op.Shape(asked.source, start=asked.start, end=asked.end)


def _bounds(node: ir.Node, rank: int) -> tuple[int, int]:
    """Return the half-open range of axes that a Shape reads."""
    start, end = attribute(node, "start") or 0, attribute(node, "end")
    return slice(start, rank if end is None else end).indices(rank)[:2]
