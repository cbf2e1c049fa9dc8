"""Give every Reshape a constant target, and merge two in a row.

Before::

    x [batch, sequence, 384] ─ Shape ─ Gather … Concat(batch, sequence, -1, 32) ─┐
    x ───────────────────────────────────────────────────────────────────────────┴─ Reshape ─ y

After::

    x ─ Reshape([0, 0, 12, 32]) ─ y

Meets: every exporter; each spells the arithmetic of shapes differently, and the derived dimensions do not care.
Numerics: exact.
Source: ONNX operator Reshape-23: 0 copies the dimension at the same place of the input, one -1 is inferred.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import Dim, ancestors, attribute, dims, integers, is_constant, is_op, known_dims
from onnxopt.rewrite import Builder, Match, Rule
from onnxopt.rewrite.patterns import Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.sizes.emptiness import may_be_empty, shape_may_be_empty
from onnxopt.spec import Exact


def constant_target(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> list[int] | None:
    """Write the shape `after` as constants for a Reshape of a tensor of shape `before`, None when it cannot be."""
    target: list[int] = []
    inferred = 0
    for axis, dim in enumerate(after):
        if isinstance(dim, int) and dim > 0:
            target.append(dim)
        elif dim is not None and axis < len(before) and before[axis] == dim and not isinstance(dim, int):
            target.append(0)
        else:
            target.append(-1)
            inferred += 1
    return target if inferred <= 1 else None


def infers_beside_empty(model: ir.Model, x: ir.Value, target: list[int]) -> bool:
    """Tell whether a target of `constant_target` infers a size and copies one that may be 0: a runtime refuses that."""
    return -1 in target and any(size == 0 and may_be_empty(model, x, axis) for axis, size in enumerate(target))


@dataclass(frozen=True)
class Target:
    """The shape of the result as a Reshape takes it."""

    sizes: tuple[int, ...]


@register
class MakeReshapeStatic(Rule):
    """Reshape(x, computed shape)  →  Reshape(x, constant)."""

    name = "make-reshape-static"
    numerics = Exact()
    enables = ("fuse-attention-heads", "merge-reshapes")
    keeps_shared = True

    def patterns(self, op: Ops, x: Pat, shape: Pat) -> Iterator[Pat]:
        """A Reshape, or what an exporter uses for one."""
        yield op.Reshape(x, shape)

    def guard(self, match: Match, x: ir.Value, shape: ir.Value) -> None:
        """The shape must be read from dimensions, not from data, and be expressible."""
        match.needs(not is_constant(shape), "the target is constant")
        _, leaves = ancestors(shape, through_shape=False)
        match.require(not leaves, f"the target depends on the data of {leaves[0].name if leaves else ''}")
        before, after = dims(x), dims(match.root.outputs[0])
        match.require(before is not None and after is not None, "the rank is not known")
        target = constant_target(before or (), after or ())
        match.require(
            target is not None, f"{list(after or ())} cannot be written as a constant for {list(before or ())}"
        )
        match.require(0 not in (*(before or ()), *(after or ())), "the tensor is empty")
        inferred = infers_beside_empty(match.model, x, target or [])
        match.require(not inferred, "a size cannot be inferred where another may be 0", x)
        match.note(Target(tuple(target or ())))

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """Same data, constant target."""
        return op.Reshape(x, op.ints(match.noted(Target).sizes, "shape"))


@dataclass(frozen=True)
class Merged:
    """The final shape as a Reshape of x takes it, None for the one given; and whether x has it already."""

    target: tuple[int, ...] | None
    same: bool


@register
class MergeReshapes(Rule):
    """Reshape(Reshape(x))  →  Reshape(x), or x when the shape is back."""

    name = "merge-reshapes"
    numerics = Exact()
    keeps_shared = True

    def patterns(self, op: Ops, x: Pat, shape: Pat) -> Iterator[Pat]:
        """The outer node; the inner one may also be a Flatten, Squeeze or Unsqueeze."""
        yield op.Reshape(op.Reshape(x, _rest=True), shape)
        yield op.Reshape(op.Squeeze(x, _rest=True), shape)
        yield op.Reshape(op.Unsqueeze(x, _rest=True), shape)
        yield op.Reshape(op.Flatten(x), shape)

    def guard(self, match: Match, x: ir.Value, shape: ir.Value) -> None:
        """The final shape must be expressible from the first input."""
        before, after = dims(x), dims(match.root.outputs[0])
        match.require(before is not None and after is not None, "the rank is not known")
        same = known_dims(x) is not None and before == after
        target = constant_target(before or (), after or ())
        if target is not None and infers_beside_empty(match.model, x, target):
            target = None
        plain = integers(shape)
        if target is None and not (plain is not None and 0 not in plain) and is_constant(shape):
            match.require(condition=False, reason="the final shape copies dimensions of the inner one")
        if target is None and not is_constant(shape):  # what is computed copies a dimension where it is 0
            may_copy = shape_may_be_empty(match.model, match.root.outputs[0])
            match.require(not may_copy, "a size of the final shape may be 0, which copies one of the inner shape")
        copies = attribute(match.root, "allowzero") in (None, 0)
        match.require(
            target is not None or not is_op(match.root, "Reshape") or plain is not None or copies, "allowzero is set"
        )
        match.note(Merged(None if target is None else tuple(target), same))

    def rewrite(self, op: Builder, match: Match, x: ir.Value, shape: ir.Value) -> ir.Value:
        """One step."""
        merged = match.noted(Merged)
        if merged.same:
            return x
        return op.Reshape(x, op.ints(merged.target, "shape") if merged.target is not None else shape)
