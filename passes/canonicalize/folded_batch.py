"""Compute on [batch, heads, …] what an exporter computes on [batch·heads, …].

Before::

    q [batch, heads, queries, size] ─ Reshape [batch·heads, queries, size] ─┐
    k likewise ─ Transpose(0 2 1) ──────────────────────────────────────────┴─ MatMul ─ Add ─ Reshape ─ scores

After::

    q ──────────────────────┐
    k ─ Transpose(0 1 3 2) ─┴─ MatMul ─ Add ─ scores

Meets: torch.bmm and torch.baddbmm in attention: BLOOM, DeBERTa-v2, XGLM, WavLM; every exporter.
Numerics: exact up to the runtime's order of the same sums.
Source: ONNX operator MatMul-13: a stack of matrices may have any number of axes in front of the last two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.graph import Dim, ancestors, attribute, dims, is_constant, is_op, known_dims, rank
from onnxopt.rewrite import Builder, Match, Refusal, Rule
from onnxopt.rewrite.patterns import Miss, Ops, Pat
from onnxopt.rewrite.registry import register
from onnxopt.spec import Reassociated

ELEMENTWISE = ("Add", "Sub", "Mul", "Div")
LARGEST_EXPRESSION = 40
LARGEST_WALK = 80  # nodes looked at for it: the sum of all layers before is no expression of a batch


@dataclass(frozen=True)
class Folded:
    """The nodes that compute on the folded batch, back to the folds."""

    members: tuple[ir.Node, ...]


@dataclass(frozen=True)
class Leading:
    """The two axes that are folded into one."""

    axes: tuple[Dim, ...]


@register
class UnfoldBatch(Rule):
    """Reshape(f(Reshape(a), Reshape(b)))  →  f(a, b), where f is made of MatMul, Softmax, + − × ÷ and transposes."""

    name = "unfold-batch"
    numerics = Reassociated(rtol=2e-5, atol=2e-6)
    enables = ("unfold-transpose", "fuse-attention")

    def patterns(self, op: Ops, x: Pat) -> Iterator[Pat]:
        """Whatever is unfolded; `find` walks back to where it was folded."""
        yield op.Reshape(x, _rest=True)

    def find(self, node: ir.Node, patterns: Sequence[Pat], model: ir.Model, miss: Miss) -> Iterator[Match]:
        """Take the expression into the match, so that the proof covers it."""
        for found in super().find(node, patterns, model, miss):
            members = list(_expression(found.values["x"]))
            sizes = ancestors(node.inputs[1], through_shape=False)[0] if node.inputs[1] is not None else []
            if len(members) + len(sizes) <= LARGEST_EXPRESSION:
                # what reads the size of the product to unfold it is not needed any more
                kept = {**dict.fromkeys(sizes, True), **{member: is_op(member, "Reshape") for member in members}}
                found.note(Folded(tuple(members)))
                found.nodes = (*kept.items(), *found.nodes)
                yield found

    def guard(self, match: Match, x: ir.Value) -> None:
        """Two leading axes come back, the matrices stay, and a product of matrices is among the expression."""
        shape = known_dims(match.root.outputs[0])
        match.needs(rank(x) == 3 and shape is not None and len(shape) == 4, "not a batch of matrices that is unfolded")
        match.needs((dims(x) or ())[1:] == (shape or ())[2:], "the matrices are cut")
        members = match.noted(Folded).members
        match.needs(any(is_op(member, "MatMul", "Softmax") for member in members), "nothing is multiplied in between")
        match.note(Leading((shape or ())[:2]))

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        """The same expression on what lies before the folds."""
        return _lift(op, x, match.noted(Leading).axes, set(match.noted(Folded).members), {})


def _expression(value: ir.Value | None) -> Iterator[ir.Node]:
    """Yield the nodes back to the folds, in topological order; what has no fold behind it is left as it is."""
    seen: dict[ir.Node, bool] = {}
    entered: set[ir.Node] = set()

    def visit(current: ir.Value | None) -> bool:
        node = current.producer() if current is not None else None
        if node is None or rank(current) != 3 or len(entered) > LARGEST_WALK:
            return False
        if node not in seen:
            entered.add(node)
            if is_op(node, "MatMul", *ELEMENTWISE) or _swaps(node) or _weighs(node):
                reached = [visit(parent) for parent in node.inputs]
                seen[node] = any(reached)
            else:
                seen[node] = is_op(node, "Reshape") and _folds(node)
        return seen[node]

    visit(value)
    yield from (node for node, folded in seen.items() if folded)


def _weighs(node: ir.Node) -> bool:
    return is_op(node, "Softmax") and attribute(node, "axis") in (-1, 2)


def _swaps(node: ir.Node) -> bool:
    return is_op(node, "Transpose") and tuple(attribute(node, "perm") or ()) == (0, 2, 1)


def _folds(node: ir.Node) -> bool:
    """A Reshape that makes the two leading axes of four one."""
    before, after = known_dims(node.inputs[0]), dims(node.outputs[0])
    return before is not None and len(before) == 4 and after is not None and after[1:] == before[2:]


def _lift(
    op: Builder, value: ir.Value, leading: tuple[Dim, ...], inner: set[ir.Node], done: dict[ir.Value, ir.Value]
) -> ir.Value:
    """Return the value with its two leading axes apart."""
    if value in done:
        return done[value]
    node = value.producer()
    if node is None or node not in inner:
        lifted = _leaf(op, value, leading, f"unfolded_{len(done)}")
    elif is_op(node, "Reshape"):
        source = node.inputs[0]
        if source is None or not _fits(dims(source) or (), leading):
            raise Refusal("other axes are folded", value.name or "")
        lifted = source
    elif is_op(node, "Softmax"):
        lifted = op.Softmax(_lift(op, _input(node, 0), leading, inner, done), axis=-1)
    elif is_op(node, "Transpose"):
        lifted = op.Transpose(_lift(op, _input(node, 0), leading, inner, done), perm=[0, 1, 3, 2])
    else:
        parts = [_lift(op, _input(node, index), leading, inner, done) for index in range(2)]
        lifted = op.node(node.op_type, parts, {})[0]
    done[value] = lifted
    return lifted


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise Refusal("an operand is missing", node.name or "")
    return value


def _fits(shape: tuple[Dim, ...], leading: tuple[Dim, ...]) -> bool:
    return all(have in (want, 1) for have, want in zip(shape, leading, strict=False))


def _leaf(op: Builder, value: ir.Value, leading: tuple[Dim, ...], name: str) -> ir.Value:
    """Unfold what was made folded; what broadcasts over the batch stays as it is."""
    shape = dims(value)
    if shape is None:
        raise Refusal("its rank is not known", value.name or "")
    if len(shape) < 3 or shape[0] == 1:
        return value
    if len(shape) > 3 or None in shape[1:] or is_constant(value):
        raise Refusal("it cannot be unfolded", value.name or "")
    wanted = [dim for dim in (*leading, *shape[1:]) if dim is not None]
    return op.reshape(value, wanted, name)
