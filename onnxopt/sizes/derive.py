"""Walk a graph and derive what is known of its values for every size of its open axes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxopt.graph import dims as declared_dims
from onnxopt.graph import is_constant, is_op
from onnxopt.graph.cache import PAST, SEQUENCE, TOTAL
from onnxopt.sizes import (  # noqa: F401 - the rules register themselves
    rules_attention,
    rules_elementwise,
    rules_flow,
    rules_movement,
    rules_products,
    rules_resize,
    rules_sequence,
)
from onnxopt.sizes.check import (
    ALL,
    NotComputable,
    axes_in,
    constants_in,
    hangs_on_data,
    has_calls,
    same_everywhere,
    values_at_proposing_sizes,
)
from onnxopt.sizes.facts import UNKNOWN, Fact, of_constant
from onnxopt.sizes.fallback import infer
from onnxopt.sizes.rules import Step, rule_of
from onnxopt.sizes.terms import (
    INT,
    Atom,
    Number,
    Poly,
    Size,
    add,
    axis,
    exact_quotient,
    fresh,
    multiply,
    product,
    subtract,
)
from onnxopt.sizes.words import fit, is_plain
from onnxopt.spec import AxisRange, SizeClaims

logger = logging.getLogger(__name__)

FACT_KEY, CONSTANT_KEY = "onnxopt.fact", "onnxopt.fact_of_constant"  # in a value's meta
LEAST_SEEN = 3  # sizes from which a proposal is read off
MOST_LOOKS = 3  # at a graph, while it shows ever smaller limits of its axes


@dataclass
class Derivation:
    """What is known of the values of one model, for every size.

    Facts are kept in the values' `meta`, so that a copy of the graph has them, too.

    Attributes:
        ranges: sizes of axes at which the model runs: nothing is claimed beyond. Of an axis that is not among them,
            all from 0 on.
        longest: the context length of the model, up to which sizes are computed at least.
        computed: terms that were found equal to a simpler one at every size up to a bound, with that bound.
    """

    ranges: dict[str, AxisRange] = field(default_factory=dict)
    longest: int = 0
    computed: dict[Poly, int] = field(default_factory=dict)
    _axes: dict[str, Size] = field(default_factory=dict)
    _simple: dict[Number, Number] = field(default_factory=dict)
    _shown: dict[Size, int | str | None] = field(default_factory=dict)

    # What is asked

    def update(self, model: ir.Model, *, anew: bool = False, incomplete: bool = False) -> list[ir.Value]:
        """Derive facts of the values of the main graph that have none.

        Args:
            model: its nodes are in topological order; facts are kept in its values.
            anew: derive all of them, whatever is kept.
            incomplete: derive those again of which something is not known.

        Returns:
            The values that have new facts, in order.
        """
        self._name_axes(model)
        known = dict(self.ranges)
        changed = self._walk(model, anew=anew, incomplete=incomplete)
        for _ in range(MOST_LOOKS if anew else 0):
            if self.ranges == known:
                break
            known = dict(self.ranges)
            self._simple.clear()  # within the limits that the graph showed, more is simple
            self._walk(model, anew=True, incomplete=False)
        return changed

    def of(self, value: ir.Value | None) -> Fact:
        """Return what is known of a value of the main graph."""
        if value is None:
            return UNKNOWN
        if is_constant(value):
            tensor = value.const_value
            kept = value.meta.get(CONSTANT_KEY)
            if kept is None or kept[0] is not tensor:  # a pass may have put a smaller weight in its place
                kept = value.meta[CONSTANT_KEY] = (tensor, of_constant(value))
            fact: Fact = kept[1]
            return fact
        found = value.meta.get(FACT_KEY)
        if isinstance(found, Fact):
            return found
        return self._of_input(value) if value.is_graph_input() else UNKNOWN

    def inside(self) -> Derivation:
        """Return a copy for a body of the model: what is learned in there of the ends of axes does not hold outside."""
        return replace(
            self,
            ranges=dict(self.ranges),
            computed=dict(self.computed),
            _axes=dict(self._axes),
            _simple=dict(self._simple),
            _shown={},
        )

    def shown(self, size: Size) -> int | str | None:
        """Return a dimension as graphs write it: a size, an axis, `a*b`, `a*c`, `a + c`; None for anything else."""
        if isinstance(size, int):
            return size
        if size not in self._shown:
            self._shown[size] = self._written(size)
        return self._shown[size]

    def fact_of_shape(self, shape: ir.Shape) -> Fact:
        """Return the fact that a shape states which was written in the words of `shown`."""
        sizes = (self._parsed(dim if isinstance(dim, int) else dim.value) for dim in shape)
        return Fact(tuple(fresh() if size is None else size for size in sizes))

    def turning(self, model: ir.Model) -> dict[str, tuple[int, ...]]:
        """Return, for each open axis, the sizes from which on something about the sizes of the graph is different."""
        found: dict[str, set[int]] = {}
        for node in model.graph:
            for value in node.outputs:
                fact = self.of(value)
                for number in (*(fact.dims or ()), *(fact.elements or ())):
                    if has_calls(number):
                        for name, sizes in _turns(number).items():
                            found.setdefault(name, set()).update(sizes)
        for name, sizes_of in self.ranges.items():
            found.setdefault(name, set()).update(size for size in (sizes_of.least, sizes_of.most) if size)
        return {name: tuple(sorted(sizes)) for name, sizes in sorted(found.items())}

    @property
    def axes(self) -> frozenset[str]:
        """Names of the axes of the model's inputs."""
        return frozenset(self._axes)

    def axis(self, name: str) -> Size:
        """Return the size of a named axis of an input."""
        if name not in self._axes:
            self._axes[name] = axis(name)
        return self._axes[name]

    # Walking

    def _walk(self, model: ir.Model, *, anew: bool, incomplete: bool) -> list[ir.Value]:
        changed: list[ir.Value] = []
        for node in model.graph:
            wanted = anew or any(
                FACT_KEY not in value.meta or (incomplete and _is_incomplete(value)) for value in node.outputs
            )
            if not wanted:
                continue
            made = [self.of(node.outputs[0])] if is_op(node, "Constant") else self._of_node(node, {})
            for value, fact in zip(node.outputs, made, strict=True):
                if anew or FACT_KEY not in value.meta or _is_incomplete(value):
                    value.meta[FACT_KEY] = fact
                    changed.append(value)
        return changed

    def _of_node(self, node: ir.Node, local: Mapping[ir.Value, Fact]) -> list[Fact]:
        """Return one fact per output of a node; `local` has those of values inside a body."""
        inputs = tuple(local[value] if value in local else self.of(value) for value in node.inputs if value is not None)
        if len(inputs) < len(node.inputs):
            given = iter(inputs)
            inputs = tuple(UNKNOWN if value is None else next(given) for value in node.inputs)
        step = Step(node, inputs, lambda graph, facts: self._inside(graph, facts, local))
        rule = rule_of(node)
        try:
            made = list(rule(step) if rule is not None else infer(step))
        except (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
            # a node that its operator's rule does not understand is not known; the runtime decides whether it runs
            logger.debug("%s %s: %s", node.op_type, node.name, error)
            made = []
        made = made[: len(node.outputs)]
        return [*map(self._simplified, made), *[UNKNOWN] * (len(node.outputs) - len(made))]

    def _inside(self, graph: ir.Graph, facts: Sequence[Fact], outer: Mapping[ir.Value, Fact]) -> list[Fact]:
        """Return what is known of the outputs of a body, for facts of its inputs.

        A branch that adds a table of 512 rows ends an axis at 512 where it is taken; the other one may go on.
        """
        outside = self.ranges, self.computed, self._simple
        self.ranges, self.computed, self._simple = dict(self.ranges), dict(self.computed), dict(self._simple)
        try:
            return self._walked(graph, facts, outer)
        finally:
            self.ranges, self.computed, self._simple = outside

    def _walked(self, graph: ir.Graph, facts: Sequence[Fact], outer: Mapping[ir.Value, Fact]) -> list[Fact]:
        local = dict(outer)
        local.update(zip(graph.inputs, facts, strict=False))
        for value in graph.inputs[len(facts) :]:
            local[value] = UNKNOWN
        for value in graph.inputs:
            value.meta[FACT_KEY] = local[value]  # of a loop the last ones hold in every turn
        for value in graph.initializers.values():
            local[value] = of_constant(value)
        for node in graph:
            local.update(zip(node.outputs, self._of_node(node, local), strict=True))
        return [local[value] if value in local else self.of(value) for value in graph.outputs]

    def _of_input(self, value: ir.Value) -> Fact:
        found = declared_dims(value)
        if found is None:
            return UNKNOWN
        return Fact(tuple(dim if isinstance(dim, int) else fresh() if dim is None else self.axis(dim) for dim in found))

    def _name_axes(self, model: ir.Model) -> None:
        """Give sums among the names of axes their meaning; with a cache, the total is past and new positions."""
        inputs = [value for value in model.graph.inputs if FACT_KEY not in value.meta]  # of others more is known
        names = {dim for value in inputs for dim in declared_dims(value) or () if isinstance(dim, str)}
        for name in sorted(names):
            terms = [term.strip() for term in name.split("+")]
            if len(terms) > 1 and all(term.isdigit() or term in names for term in terms):
                total: Size = 0
                for term in terms:
                    total = add(total, int(term) if term.isdigit() else axis(term))
                self._axes[name] = total
            else:
                self.axis(name)
        if {PAST, SEQUENCE} <= names:
            self._axes[TOTAL] = add(axis(PAST), axis(SEQUENCE))

    # Simpler terms

    def _simplified(self, fact: Fact) -> Fact:
        dims, elements, computed = fact.dims, fact.elements, 0
        if dims is not None and not all(isinstance(size, int) for size in dims):
            dims = tuple(self._simple_of(size) for size in dims)  # type: ignore[misc]  # a size stays a size
            computed = sum(size in self.computed for size in fact.dims or ())
        if elements is not None and fact.dtype == INT and not all(isinstance(one, int) for one in elements):
            elements = tuple(self._simple_of(one) for one in elements)
            computed += sum(one in self.computed for one in fact.elements or ())
        items = None if fact.items is None else tuple(map(self._simplified, fact.items))
        return replace(fact, dims=dims, elements=elements, items=items, computed=computed)

    def _simple_of(self, number: Number) -> Number:
        """Return the simplest term that is the same number at every size: an axis, a product, a sum."""
        if not isinstance(number, Poly) or not has_calls(number):
            return number
        if number not in self._simple:
            self._note_limits(number)
            self._simple[number] = self._proposed(number)
        return self._simple[number]

    def _proposed(self, number: Poly) -> Number:
        if hangs_on_data(number):
            return number
        try:
            seen, sizes = values_at_proposing_sizes(number, self.ranges)
        except NotComputable:
            return number
        if len(seen) < LEAST_SEEN:
            return number
        for proposal in (self._parsed(fit(tuple(seen), sizes)), _linear(seen, sizes)):
            bound = 0 if proposal is None else same_everywhere(number, proposal, self.ranges, self.longest)
            if bound and proposal is not None:
                self.computed[number] = bound
                return proposal
        return number

    def _parsed(self, dim: int | str | None) -> Size | None:
        """Return an expression of `fit` as a term."""
        if dim is None or isinstance(dim, int):
            return dim
        if dim in self._axes:  # it may be called `a + b`, being that
            return self._axes[dim]
        for sign, factor in ((" + ", 1), (" - ", -1)):
            if sign in dim:
                name, offset = dim.split(sign)
                return add(self.axis(name), factor * int(offset))
        return product(int(part) if part.isdigit() else self.axis(part) for part in dim.split("*"))

    def _note_limits(self, number: Poly) -> None:
        """Learn where an axis, or a sum of axes, ends: n and the first 512 of n are equal up to 512 only.

        Where it begins, too: of 0 in its target a Reshape makes something else, and nothing is claimed of that size.
        But a text begins with an empty past: what copies there is left unknown.
        """
        for one in number.atoms():
            if one.op == "copied":
                for name in axes_in(one.args[0]) - {PAST}:
                    self._narrow(name, least=1)
            elif one.op == "broadcast":
                difference = subtract(*one.args)  # type: ignore[arg-type]  # dimensions
                over, most = _cut_off(difference)
                name = next((name for name, size in self._axes.items() if size == over), "")
                if name:
                    self._narrow(name, most=most)

    def _narrow(self, name: str, *, least: int = 0, most: int = 0) -> None:
        found = self.ranges.get(name, ALL)
        ends = [end for end in (most, found.most) if end]
        self.ranges[name] = replace(found, least=max(least, found.least), most=min(ends, default=0))

    # Writing

    def _written(self, size: Poly) -> int | str | None:
        if has_calls(size) or hangs_on_data(size):
            return None
        names = sorted(self._axes)
        by_term = {self._axes[name]: name for name in names}
        if size in by_term:
            return by_term[size]
        names = [name for name in names if is_plain(name)]  # twice `a + b` is not `a + b*2`
        for place, name in enumerate(names):
            rest = exact_quotient(size, self._axes[name])
            if rest is None:
                continue
            if isinstance(rest, int) and rest > 1:
                return f"{name}*{rest}"
            other = by_term.get(rest)
            if other is not None and other in names[place:]:
                return f"{name}*{other}"
        for name in names:
            offset = subtract(size, self._axes[name])
            if isinstance(offset, int):
                return f"{name} {'+' if offset > 0 else '-'} {abs(offset)}"
        return None


def _linear(seen: Sequence[int], sizes: Sequence[Mapping[str, int]]) -> Size | None:
    """Propose a sum of multiples of axes and a constant for what was seen at some sizes; None where there is none."""
    axes = sorted(sizes[0])
    if len(seen) <= len(axes) + 1:
        return None
    rows = np.array([[*(one[name] for name in axes), 1] for one in sizes], np.float64)
    found = np.linalg.lstsq(rows, np.array(seen, np.float64), rcond=None)[0]
    factors = [round(float(factor)) for factor in found]
    if np.any(rows @ np.array(factors, np.float64) != np.array(seen, np.float64)):
        return None
    total: Size = factors[-1]
    for name, factor in zip(axes, factors, strict=False):
        total = add(total, multiply(axis(name), factor))
    return total


def _is_incomplete(value: ir.Value) -> bool:
    fact = value.meta.get(FACT_KEY)
    return not isinstance(fact, Fact) or fact.dims is None or any(hangs_on_data(size) for size in fact.dims)


def _cut_off(difference: Size) -> tuple[Size, int]:
    """Return term and limit where a difference is ± pos(term − limit), and 0 twice for any other."""
    parts = difference.parts if isinstance(difference, Poly) else ()
    if len(parts) != 1 or abs(parts[0][1]) != 1 or len(parts[0][0]) != 1 or parts[0][0][0].op != "pos":
        return 0, 0
    over = parts[0][0][0].args[0]
    limit = -over.constant if isinstance(over, Poly) else 0
    return (add(over, limit), limit) if isinstance(over, Poly) and limit > 1 else (0, 0)


@functools.cache  # terms share parts, and values share terms
def _turns(number: Number) -> dict[str, list[int]]:
    """Return the numbers that each axis of a term meets in it; not to be changed."""
    members = list(number.atoms()) if isinstance(number, Poly) else [number] if isinstance(number, Atom) else []
    found: dict[str, list[int]] = {}
    for one in members:
        if one.op == "axis":
            found.setdefault(one.name, [])
        for arg in one.args:
            for name, sizes in _turns(arg).items():
                found.setdefault(name, []).extend(sizes)
        if one.args:
            mentioned = [size for size in constants_in(*one.args) if size > 0]
            for sizes in found.values():
                sizes.extend(mentioned)
    return found


def same_dimension(left: ir.Value | None, right: ir.Value | None, axis: int, other: int | None = None) -> bool:
    """Tell whether two values have the same size along an axis, for every size of the model's own axes.

    Two dimensions that have no name may be equal all the same, and two that are not known are not.

    Args:
        left: one value.
        right: the other.
        axis: of `left`, and of `right` where `other` is not given.
        other: the axis of `right`.
    """
    places = ((left, axis), (right, axis if other is None else other))
    sizes = [_kept_size(value, place) for value, place in places]
    if None not in sizes:
        return sizes[0] == sizes[1]
    shapes = [(declared_dims(value) or (), place) for value, place in places]
    found = [shape[place] if -len(shape) <= place < len(shape) else None for shape, place in shapes]
    return None not in found and found[0] == found[1]


def same_shape(left: ir.Value, right: ir.Value) -> bool:
    """Tell whether two values have the same dimensions, for every size of the model's own axes."""
    shapes = [declared_dims(value) for value in (left, right)]
    if shapes[0] is None or shapes[1] is None or len(shapes[0]) != len(shapes[1]):
        return False
    return all(same_dimension(left, right, axis) for axis in range(len(shapes[0])))


def _kept_size(value: ir.Value | None, axis: int) -> Size | None:
    fact = value.meta.get(FACT_KEY) if value is not None else None
    sizes = fact.dims if isinstance(fact, Fact) and fact.dims is not None else ()
    return sizes[axis] if -len(sizes) <= axis < len(sizes) else None


def sizes_mentioned(values: Iterable[ir.Value]) -> list[int]:
    """Return the numbers at which something about the sizes of values changes, as far as facts of them are kept."""
    found: set[int] = set()
    for value in values:
        fact = value.meta.get(FACT_KEY)
        if isinstance(fact, Fact):
            numbers = (number for number in (*(fact.dims or ()), *(fact.elements or ())) if has_calls(number))
            found.update(size for number in numbers for sizes in _turns(number).values() for size in sizes)
    return sorted(found)


def claims(model: ir.Model, derivation: Derivation) -> SizeClaims:
    """Count dimensions, and the elements of shapes, of the main graph's values by how they are known."""
    derived = computed = unknown = 0
    for value in _values(model):
        fact = derivation.of(value)
        elements = fact.elements if fact.dtype == INT and not is_constant(value) else None
        known = [derivation.shown(size) is not None for size in fact.dims] if fact.dims is not None else [False]
        known += [not has_calls(element) and not hangs_on_data(element) for element in elements or ()]
        derived, computed = derived + sum(known) - fact.computed, computed + fact.computed
        unknown += len(known) - sum(known)
    return SizeClaims(derived, computed, max(derivation.computed.values(), default=0), unknown)


def _values(model: ir.Model) -> Iterable[ir.Value]:
    return (value for node in model.graph for value in node.outputs if value.name)
