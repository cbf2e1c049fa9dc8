"""Sequences and optionals of tensors."""

from __future__ import annotations

from collections.abc import Sequence

from onnxopt.sizes.facts import UNKNOWN, Fact
from onnxopt.sizes.rules import Step, joined, parts_of, place_of, rule
from onnxopt.sizes.terms import INT, Size

LONGEST = 256  # of a sequence whose tensors are followed one by one


@rule("SequenceConstruct")
def _construct(step: Step) -> Sequence[Fact]:
    return [Fact(items=step.inputs)]


@rule("SequenceEmpty")
def _empty(step: Step) -> Sequence[Fact]:
    del step
    return [Fact(items=())]


@rule("SplitToSequence")
def _split(step: Step) -> Sequence[Fact]:
    dims = step.dims(0)
    if dims is None:
        return [UNKNOWN]
    axis = place_of(int(step.attribute("axis") or 0), len(dims))
    size = dims[axis]
    if step.has(1):
        given = step.whole(1)
        if given is None:
            return [UNKNOWN]
        sizes = _chunks(size, given[0]) if step.fact(1).rank == 0 else list(given)
    else:
        sizes = _chunks(size, 1)
    if sizes is None:
        return [UNKNOWN]
    items = parts_of(step.fact(0), axis, sizes)
    if not step.has(1) and step.attribute("keepdims") == 0:
        items = [Fact((*dims[:axis], *dims[axis + 1 :])) for _ in items]
    return [Fact(items=tuple(items))]


def _chunks(size: Size, step: Size) -> list[Size] | None:
    """Return the sizes of chunks, the last one being what is left over; None where their number varies."""
    if not isinstance(size, int) or not isinstance(step, int) or step < 1 or size > LONGEST * step:
        return None
    return [min(step, size - start) for start in range(0, size, step)]


def _place(step: Step, index: int, length: int) -> int | None:
    """Return a position that is the same at every size, counted from the front."""
    given = step.constants(index)
    if given is None or len(given) != 1 or not -length <= given[0] < max(length, 1):
        return None
    return given[0] % length if length else 0


@rule("SequenceAt")
def _at(step: Step) -> Sequence[Fact]:
    items = step.fact(0).items
    place = _place(step, 1, len(items)) if items else None
    return [items[place]] if items and place is not None else [UNKNOWN]


@rule("SequenceInsert")
def _insert(step: Step) -> Sequence[Fact]:
    items = step.fact(0).items
    if items is None:
        return [UNKNOWN]
    if not step.has(2):
        return [Fact(items=(*items, step.fact(1)))]
    place = _place(step, 2, len(items))
    return [UNKNOWN] if place is None else [Fact(items=(*items[:place], step.fact(1), *items[place:]))]


@rule("SequenceErase")
def _erase(step: Step) -> Sequence[Fact]:
    items = step.fact(0).items
    if not items:
        return [UNKNOWN]
    place = _place(step, 1, len(items)) if step.has(1) else len(items) - 1
    return [UNKNOWN] if place is None else [Fact(items=(*items[:place], *items[place + 1 :]))]


@rule("SequenceLength")
def _length(step: Step) -> Sequence[Fact]:
    items = step.fact(0).items
    return [Fact(()) if items is None else Fact((), (len(items),), INT)]


@rule("ConcatFromSequence")
def _concat(step: Step) -> Sequence[Fact]:
    items = step.fact(0).items
    if not items:
        return [UNKNOWN]
    axis = int(step.attribute("axis"))
    if not step.attribute("new_axis"):
        return [joined(items, axis)]
    if any(item.dims is None for item in items):
        return [UNKNOWN]
    place = axis % (len(items[0].dims or ()) + 1)
    shapes = [item.dims or () for item in items]
    return [joined([Fact((*dims[:place], 1, *dims[place:])) for dims in shapes], place)]


@rule("Optional", "OptionalHasElement")
def _optional(step: Step) -> Sequence[Fact]:
    if step.node.op_type == "OptionalHasElement":
        return [Fact(())]
    return [step.fact(0)] if step.inputs else [UNKNOWN]


@rule("SequenceMap")
def _mapped(step: Step) -> Sequence[Fact]:
    return [UNKNOWN for _ in step.node.outputs]
