"""If, Loop and Scan: what their bodies give, for every branch and every turn."""

from __future__ import annotations

from collections.abc import Sequence

from onnxopt.sizes.facts import UNKNOWN, Fact
from onnxopt.sizes.rules import Step, rule
from onnxopt.sizes.terms import INT, Number, Size, call, fresh, is_constant

MOST_TURNS = 8  # a body's dimensions are followed until nothing changes, at most so often


@rule("If")
def _if(step: Step) -> Sequence[Fact]:
    branches = [step.node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    elements = step.fact(0).elements
    condition: Number | None = elements[0] if elements and len(elements) == 1 else None
    if condition is not None and is_constant(condition):
        return step.inside(branches[0 if condition else 1], ())
    first, second = (step.inside(branch, ()) for branch in branches)
    return [_either(condition, one, other) for one, other in zip(first, second, strict=True)]


def _either(condition: Number | None, first: Fact, second: Fact) -> Fact:
    """Return what is known of a value that is one of two."""
    if first.dims is None or second.dims is None or len(first.dims) != len(second.dims):
        return UNKNOWN
    dims = tuple(_choice(condition, one, other) for one, other in zip(first.dims, second.dims, strict=True))
    if first.elements is None or second.elements is None or first.dtype != second.dtype or condition is None:
        return Fact(dims)
    if len(first.elements) != len(second.elements):
        return Fact(dims)
    chosen = [
        one if one == other and type(one) is type(other) else call("where", first.dtype, condition, one, other)
        for one, other in zip(first.elements, second.elements, strict=True)
    ]
    return Fact(dims, tuple(chosen), first.dtype)


def _choice(condition: Number | None, first: Size, second: Size) -> Size:
    if first == second:
        return first
    return fresh() if condition is None else call("where", INT, condition, first, second)  # type: ignore[return-value]  # int64


@rule("Loop")
def _loop(step: Step) -> Sequence[Fact]:
    """States keep the dimensions that the body gives back unchanged; what it hands out is stacked, turn by turn."""
    body = step.node.attributes["body"].as_graph()
    states = [Fact(fact.dims) for fact in step.inputs[2:]]
    made: list[Fact] = []
    for _ in range(MOST_TURNS):
        made = step.inside(body, [Fact((), None), Fact(()), *states])
        widened = [_kept(before, after) for before, after in zip(states, made[1:], strict=False)]
        if widened == states:
            break
        states = widened
    else:
        states = [UNKNOWN] * len(states)
        made = step.inside(body, [Fact(()), Fact(()), *states])
    handed_out = made[1 + len(states) :]
    turns = fresh()
    return [*states, *(Fact(None if fact.dims is None else (turns, *fact.dims)) for fact in handed_out)]


def _kept(before: Fact, after: Fact) -> Fact:
    """Return what holds before and after a turn."""
    if before.dims is None or after.dims is None or len(before.dims) != len(after.dims):
        return UNKNOWN
    return Fact(
        tuple(one if one == other else _varies(one) for one, other in zip(before.dims, after.dims, strict=True))
    )


def _varies(size: Size) -> Size:
    """Return a size that differs from turn to turn: a new one, or the one that already stands for that."""
    return size if not isinstance(size, int) and any(one.op == "fresh" for one in size.atoms()) else fresh()


@rule("Scan")
def _scan(step: Step) -> Sequence[Fact]:
    if step.opset < 9:
        return []
    body = step.node.attributes["body"].as_graph()
    count = int(step.attribute("num_scan_inputs"))
    first = len(step.inputs) - count
    axes = step.attribute("scan_input_axes") or [0] * count
    scanned: list[Fact] = []
    length: Size = fresh()
    for fact, axis in zip(step.inputs[first:], axes, strict=True):
        if fact.dims is None:
            scanned.append(UNKNOWN)
            continue
        place = axis % len(fact.dims)
        length = fact.dims[place]
        scanned.append(Fact((*fact.dims[:place], *fact.dims[place + 1 :])))
    states = [Fact(fact.dims) for fact in step.inputs[:first]]
    made = step.inside(body, [*states, *scanned])
    outputs = step.attribute("scan_output_axes") or [0] * (len(made) - first)
    stacked = []
    for fact, axis in zip(made[first:], outputs, strict=True):
        if fact.dims is None:
            stacked.append(UNKNOWN)
            continue
        place = axis % (len(fact.dims) + 1)
        stacked.append(Fact((*fact.dims[:place], length, *fact.dims[place:])))
    return [*states, *stacked]
