"""What an operator makes of dimensions: the registry of rules, and what one rule is given.

A rule is a function of a `Step` that returns one `Fact` per output; outputs that it leaves out are not known. Rules
hold for every size, those of 0 included, wherever ONNX Runtime runs the node at all. What has no rule here is asked of
onnx's own shape inference of that one operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxopt.graph import CONTRIB, STANDARD_DOMAINS, attribute, opset_of
from onnxopt.sizes.facts import LARGEST_ELEMENTS, UNKNOWN, Fact, of_elements
from onnxopt.sizes.terms import Number, Size, add, broadcast, fresh


@dataclass(frozen=True)
class Step:
    """One node with what is known of its inputs.

    Attributes:
        node: the node.
        inputs: one fact per input; an absent input has `UNKNOWN`.
        inside: what is known of the outputs of a graph that the node carries, for facts of that graph's inputs.
    """

    node: ir.Node
    inputs: tuple[Fact, ...]
    inside: Callable[[ir.Graph, Sequence[Fact]], list[Fact]]

    def has(self, index: int) -> bool:
        """Tell whether an input is there."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def fact(self, index: int) -> Fact:
        """Return what is known of an input."""
        return self.inputs[index] if index < len(self.inputs) else UNKNOWN

    def dims(self, index: int = 0) -> tuple[Size, ...] | None:
        """Return the dimensions of an input."""
        return self.fact(index).dims

    def whole(self, index: int) -> tuple[Size, ...] | None:
        """Return the elements of an input of integers."""
        return self.fact(index).whole

    def constants(self, index: int) -> tuple[int, ...] | None:
        """Return the elements of an input of integers that are the same at every size."""
        found = self.whole(index)
        return found if found is not None and all(isinstance(one, int) for one in found) else None  # type: ignore[return-value]  # checked

    def attribute(self, name: str) -> Any:
        """Return an attribute's value or the operator's default."""
        return attribute(self.node, name)

    def axes(self, index: int) -> tuple[int, ...] | None:
        """Return axes that are an attribute before opset 13 or 18, an input since then; empty where none are given."""
        given = self.node.attributes.get("axes")
        if given is not None:
            return tuple(given.as_ints())
        return self.constants(index) if self.has(index) else ()

    @property
    def opset(self) -> int:
        """The version of the operator's domain."""
        return opset_of(self.node) or self.node.version or 1


RuleFunction = Callable[[Step], Sequence[Fact]]
RULES: dict[tuple[str, str], RuleFunction] = {}


def rule(*op_types: str, domain: str = "") -> Callable[[RuleFunction], RuleFunction]:
    """Register a function as the rule of some operators."""

    def register(function: RuleFunction) -> RuleFunction:
        for op_type in op_types:
            if (domain, op_type) in RULES:
                raise ValueError(f"{op_type} has two rules: {RULES[domain, op_type].__name__}, {function.__name__}")
            RULES[domain, op_type] = function
        return function

    return register


def rule_of(node: ir.Node) -> RuleFunction | None:
    """Return the rule of a node's operator."""
    return RULES.get(("" if node.domain in STANDARD_DOMAINS else node.domain, node.op_type))


def contrib(*op_types: str) -> Callable[[RuleFunction], RuleFunction]:
    """Register a function as the rule of operators of ONNX Runtime's own domain."""
    return rule(*op_types, domain=CONTRIB)


# Words of several rules


def together(*shapes: Sequence[Size] | None) -> tuple[Size, ...] | None:
    """Return the dimensions that tensors give together when they broadcast, None where one is not known."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or not known:
        return None
    rank = max(map(len, known))
    result: list[Size] = [1] * rank
    for shape in known:
        for place, size in enumerate(shape, rank - len(shape)):
            result[place] = broadcast(result[place], size)
    return tuple(result)


def elements_together(facts: Sequence[Fact]) -> list[tuple[Number, ...]] | None:
    """Return the elements of small tensors, each repeated as broadcasting repeats them; None where some are not known.

    Only scalars and lists of one repeat; that is all that arithmetic on shapes does.
    """
    if any(fact.elements is None for fact in facts):
        return None
    found = [fact.elements or () for fact in facts]
    longest = max(map(len, found))
    if any(len(one) not in (1, longest) for one in found) or 0 in map(len, found):
        return None
    if any((fact.rank or 0) > 1 for fact in facts):
        return None
    return [one if len(one) == longest else one * longest for one in found]


def place_of(axis: int, rank: int) -> int:
    """Return an axis counted from the front; raises IndexError where the tensor has no such axis."""
    if not -rank <= axis < rank:
        raise IndexError(f"axis {axis} of {rank}")
    return axis % rank


def joined(facts: Sequence[Fact], axis: int) -> Fact:
    """Return what is known of tensors that are joined along an axis."""
    shapes = [fact.dims for fact in facts]
    known = [dims for dims in shapes if dims is not None]
    if not known or len(set(map(len, known))) != 1:
        return UNKNOWN
    place = place_of(axis, len(known[0]))
    # along the other axes all are equal, so that any says what it is; a constant says it best
    dims = [next((size for size in sizes if isinstance(size, int)), sizes[0]) for sizes in zip(*known, strict=True)]
    total: Size = 0
    for shape in known:
        total = add(total, shape[place])
    dims[place] = total if len(known) == len(shapes) else fresh()
    elements = [one for fact in facts for one in fact.elements or ()]
    kinds = {fact.dtype if fact.elements is not None else "" for fact in facts}
    if len(dims) == 1 and len(kinds) == 1 and kinds != {""} and len(elements) <= LARGEST_ELEMENTS:
        return Fact(tuple(dims), tuple(elements), kinds.pop())
    return Fact(tuple(dims))


def parts_of(fact: Fact, axis: int, sizes: Sequence[Size]) -> list[Fact]:
    """Return what is known of the parts of a tensor that is split along an axis into parts of given sizes."""
    dims, start, parts = fact.dims or (), 0, []
    constant = all(isinstance(size, int) for size in sizes)
    for size in sizes:
        if fact.elements is not None and len(dims) == 1 and constant:
            parts.append(of_elements(fact.elements[start : start + int(size)], fact.dtype))  # type: ignore[arg-type]  # constants
            start += int(size)  # type: ignore[arg-type]  # same
        else:
            parts.append(Fact((*dims[:axis], size, *dims[axis + 1 :])))
    return parts
