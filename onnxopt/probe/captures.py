"""Remember what a model's values were at some sizes, so that the next look at it runs only what lies between.

A value keeps its name and its meaning when it is rewritten; arrays are remembered by name. Rules that are proved one
after the other read much the same values: with the residual stream at hand, the rotary part of a layer needs that
layer's projection and not the thirty layers before it. Nearly all the time of a run goes into products with weights, so
their results are fetched along with what is wanted, and remembered before anything else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxopt.graph import initializer_bytes, is_constant, is_op, known_dims
from onnxopt.probe.cut import feedable, needed_nodes
from onnxopt.probe.observe import Observation
from onnxopt.probe.runners import GraphRunner
from onnxopt.sizes.words import size_of
from onnxopt.spec import Array, Feeds

LEAST_LIMIT_BYTES = 2**26  # of all sizes together: some of the memory that a run of the whole model takes
SHARE_OF_WEIGHTS = 8
MOST_LIMIT_BYTES = 2**28  # whatever the weights are: those are not in memory
PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "MatMulNBits", "MatMulInteger", "Conv", "ConvTranspose"})


class Captures:
    """Activations of one model at every observation, by the name of their value.

    Args:
        limit_bytes: what is remembered at most: the results of products, the smallest of the others after them. None
            allows 64 MiB, or an eighth of the weights where that is more, and 256 MiB at most.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._limit = limit_bytes
        self._known: list[Feeds] = []
        self._products: set[str] = set()

    def forget(self) -> None:
        """Drop everything: names have other meanings now."""
        self._known = []

    def run(
        self, model: ir.Model, observations: Sequence[Observation], wanted: Collection[ir.Value]
    ) -> Generator[dict[ir.Value, Array]]:
        """Yield what the wanted values are at each observation, one size after the other.

        Args:
            model: not changed.
            observations: the same ones every time, until `forget`.
            wanted: values of the main graph; what is yielded has their order.

        Raises:
            ProbeError: the model does not run.
        """
        look = self._look(model, observations, wanted)
        runner = GraphRunner(model, [*wanted, *look.along], with_outputs=False, known=look.known, turned=True)
        for observation, given in zip(observations, look.given, strict=True):
            found = runner.run(observation.feeds | given)[1]
            look.keep(found)
            values = {}
            for value in wanted:
                if value in found:
                    values[value] = found[value]
                elif value in look.known:
                    values[value] = given[value.name or ""]
                elif value.is_graph_input():
                    values[value] = observation.feeds[value.name or ""]
            del found
            yield values
            del values
        self._remember(look)

    def outputs(self, model: ir.Model, observations: Sequence[Observation]) -> Generator[Feeds]:
        """Yield the model's outputs by name at each observation, in a run of the whole model; forget what was before.

        Raises:
            ProbeError: the model does not run.
        """
        self.forget()
        look = self._look(model, observations, model.graph.outputs)
        runner = GraphRunner(model, look.along, turned=True)
        for observation in observations:
            outputs, values = runner.run(observation.feeds)
            look.keep(values)
            del values
            yield outputs
            del outputs
        self._remember(look)

    def _look(self, model: ir.Model, observations: Sequence[Observation], wanted: Iterable[ir.Value]) -> _Look:
        if len(self._known) != len(observations):
            self._known = [{} for _ in observations]
        limit = self._limit_for(model)
        held = sum(array.nbytes for arrays in self._known for n, array in arrays.items() if n in self._products)
        known = self._values(model)
        along = self._along(model, observations, (list(wanted), known), limit - held)
        given = [{value.name or "": arrays[value.name or ""] for value in known} for arrays in self._known]
        return _Look(known, along, given, self._products, limit - held, limit)

    def _remember(self, look: _Look) -> None:
        self._known = [old | new for old, new in zip(self._known, look.met, strict=True)]
        _shrink(self._known, self._products, look.limit)

    def _limit_for(self, model: ir.Model) -> float:
        if self._limit is not None:
            return self._limit
        return min(MOST_LIMIT_BYTES, max(LEAST_LIMIT_BYTES, initializer_bytes(model) / SHARE_OF_WEIGHTS))

    def _along(
        self,
        model: ir.Model,
        observations: Sequence[Observation],
        asked: tuple[Sequence[ir.Value], Collection[ir.Value]],
        room: float,
    ) -> list[ir.Value]:
        """Return results of products that a run makes anyway, the smallest first, as many as may be remembered."""
        made, axes = needed_nodes(model, *asked), [observation.sizes for observation in observations]
        sizes = {
            node.outputs[0]: bytes_at_all
            for node in model.graph
            if node in made and _is_product(node) and feedable(node.outputs[0])
            if (bytes_at_all := _bytes_of(node.outputs[0], axes)) is not None
        }
        along = []
        for value in sorted(sizes, key=lambda value: (sizes[value], value.name)):
            room -= sizes[value]
            if room < 0:
                break
            along.append(value)
        self._products.update(value.name or "" for value in along)
        return along

    def _values(self, model: ir.Model) -> dict[ir.Value, None]:
        """Return the values of the model's main graph that are remembered, in the order of the graph."""
        names, made = _common(self._known), (value for node in model.graph for value in node.outputs)
        return dict.fromkeys(value for value in made if value.name in names and feedable(value))


@dataclass
class _Look:
    """One look at a model at all observations.

    Attributes:
        known: values that need not be computed.
        along: results of products that are fetched along.
        given: what the known values are at each observation, by name.
        products: names of values that go before others.
        room: bytes for what is met.
        limit: bytes for all that is remembered.
        met: what was found at each observation so far, as much of it as there is room for.
    """

    known: Collection[ir.Value]
    along: list[ir.Value]
    given: list[Feeds]
    products: Collection[str]
    room: float
    limit: float
    met: list[Feeds] = field(default_factory=list)

    def keep(self, arrays: Mapping[ir.Value, Array]) -> None:
        """Remember what the next observation gave."""
        self.met.append({value.name or "": array for value, array in arrays.items() if feedable(value)})
        _shrink(self.met, self.products, self.room * len(self.met) / len(self.given))


def _shrink(sets: Sequence[dict[str, Array]], first: Collection[str], limit: float) -> None:
    """Keep the values that every set has, as many as the limit holds: some first, then the smallest."""
    sizes = {name: sum(arrays[name].nbytes for arrays in sets) for name in _common(sets)}
    kept = set()
    for name in sorted(sizes, key=lambda name: (name not in first, sizes[name], name)):
        limit -= sizes[name]
        if limit >= 0:
            kept.add(name)
    for arrays in sets:
        for name in arrays.keys() - kept:
            del arrays[name]


def _common(sets: Sequence[dict[str, Array]]) -> set[str]:
    return set.intersection(*(set(arrays) for arrays in sets)) if sets else set()


def _is_product(node: ir.Node) -> bool:
    """Tell whether a node multiplies with a weight; it may be read transposed."""
    if node.op_type not in PRODUCTS:
        return False
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        weight = producer.inputs[0] if producer is not None and is_op(producer, "Transpose") else value
        if is_constant(weight):
            return True
    return False


def _bytes_of(value: ir.Value, sizes: Sequence[Mapping[str, int]]) -> int | None:
    """Return what a value takes in several runs together, None where its size is not known."""
    found = known_dims(value)
    if found is None or value.dtype is None:
        return None
    try:
        return sum(math.prod(size_of(dim, one) for dim in found) for one in sizes) * int(value.dtype.itemsize)
    except (KeyError, ValueError):  # a dimension with a name, or an expression, of its own
        return None
