"""Run a model piece by piece, so that the weights of one piece are in use at a time and not those of all.

The nodes are parted where the fewest tensors cross: in a decoder, where only the residual stream goes on, before and
behind its attention and its feed-forward. What crosses is handed from one piece to the next. What is made of a graph's
inputs without a large weight (masks, angles of positions, shapes) does not cross: each piece makes it again.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph.weight_files import as_stored
from onnxopt.probe.cut import feedable, needed_nodes
from onnxopt.probe.memory import release_pages
from onnxopt.probe.runners import GraphRunner
from onnxopt.spec import Array, Feeds

LEAST_WEIGHT_BYTES = 1 << 16  # of a constant with two axes; what a smaller one gives is computed again


@dataclass(frozen=True)
class Piece:
    """Some nodes of the main graph, one behind the other.

    Attributes:
        nodes: in order.
        takes: values of earlier pieces that this one or a later one reads.
        gives: values of this or earlier pieces that later ones read; the last one gives the result.
    """

    nodes: tuple[ir.Node, ...]
    takes: tuple[ir.Value, ...]
    gives: tuple[ir.Value, ...]

    @property
    def weights(self) -> tuple[ir.Value, ...]:
        """The large constants that its nodes read, each once."""
        return tuple(dict.fromkeys(weight for node in self.nodes for weight in _large_weights(node)))


class Pieces:
    """A model in pieces, to its result.

    Args:
        model: not changed; its values must have unique names.
        result: an output of the main graph; what it does not need does not run.

    Attributes:
        pieces: in order.
    """

    def __init__(self, model: ir.Model, result: ir.Value) -> None:
        self.model, self.result = model, result
        self.pieces = pieces_of(model, result)

    @classmethod
    def to_output(cls, model: ir.Model, name: str) -> Pieces:
        """Part a model to the output of that name, which it has."""
        return cls(model, next(value for value in model.graph.outputs if value.name == name))

    def run(
        self,
        number: int,
        given: Iterable[Feeds],
        *,
        fetch: Sequence[ir.Value] = (),
        swaps: Mapping[str, Array] | None = None,
    ) -> Iterator[tuple[Feeds, dict[ir.Value, Array]]]:
        """Run one piece on every set of inputs, one after the other.

        Args:
            number: of the piece, from 0 on.
            given: the graph's inputs with what crosses into the piece, by name.
            fetch: values that the piece makes or takes, which are wanted too.
            swaps: arrays to use instead of large weights, by name.

        Yields:
            For each set what crosses into the next piece, by name, the result behind the last; and what is fetched.

        Raises:
            ProbeError: the model does not run.
        """
        piece = self.pieces[number]
        gives = piece.gives if number + 1 < len(self.pieces) else (self.result,)
        swapped = swaps or {}
        runner = GraphRunner(
            self.model, [*gives, *fetch], with_outputs=False, known=piece.takes, turned=True, swapped=swapped.keys()
        )
        for feeds in given:
            made = runner.run({**feeds, **swapped})[1]
            found = {value: made[value] if value in made else feeds[value.name or ""] for value in (*gives, *fetch)}
            del made
            yield {value.name or "": found[value] for value in gives}, {value: found[value] for value in fetch}

    def results(self, given: Sequence[Feeds], swaps_of: Callable[[Piece], Feeds] | None = None) -> Iterator[Array]:
        """Yield the result for every set of inputs; what crosses is held for all of them at once.

        Args:
            given: the graph's inputs, by name; few.
            swaps_of: gives arrays to use instead of large weights of a piece, by name, when its turn comes.
        """
        crossing: list[Feeds] = [{} for _ in given]
        for number, piece in enumerate(self.pieces):
            swaps = swaps_of(piece) if swaps_of is not None else {}
            both = ({**feeds, **own} for feeds, own in zip(given, crossing, strict=True))
            runs = self.run(number, both, swaps=swaps)
            if number + 1 == len(self.pieces):
                yield from (made[self.result.name or ""] for made, _ in runs)
            else:
                crossing = [made for made, _ in runs]

    def digests(self, about: str) -> list[str]:
        """Return a digest for every piece: of the graph, of its weights and of those of all earlier pieces.

        Args:
            about: what else tells them from others.
        """
        digest = hashlib.sha256(about.encode())
        for node in self.model.graph:
            digest.update(ir.serde.serialize_node(node).SerializeToString(deterministic=True))
        large = {weight for piece in self.pieces for weight in piece.weights}
        for name, value in sorted(self.model.graph.initializers.items()):
            if value not in large:
                digest.update(name.encode() + _content(value))
        found = []
        for piece in self.pieces:
            for weight in piece.weights:
                digest.update(f"{weight.name} {weight.shape}".encode())
                digest.update(_content(weight))
                release_pages([weight.const_value])
            found.append(digest.hexdigest())
        return found


def _content(value: ir.Value) -> memoryview | bytes:
    """Return the bytes of a constant as they lie."""
    tensor = value.const_value
    if tensor is None:
        return b""
    array = as_stored(tensor).numpy()
    if array.dtype.hasobject:  # text
        return repr(array.tolist()).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _large_weights(node: ir.Node) -> list[ir.Value]:
    """Return the large constants that a node reads, itself or transposed."""
    found = []
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        # a constant that was only moved: what reads it is what computes with it
        origin = producer.inputs[0] if producer is not None and producer.op_type == "Transpose" else value
        tensor = origin.const_value if origin is not None and origin.is_initializer() else None
        if origin is not None and tensor is not None and len(tensor.shape) > 1 and tensor.nbytes >= LEAST_WEIGHT_BYTES:
            found.append(origin)
    return found


def pieces_of(model: ir.Model, result: ir.Value) -> list[Piece]:
    """Part what a result needs into pieces, at every place where fewer tensors cross than on either side of it.

    Args:
        model: its nodes are in order.
        result: an output of the main graph.
    """
    needed = needed_nodes(model, [result])
    nodes = [node for node in model.graph if node in needed and _moves(node)]
    behind, last = _behind_weights(nodes), _last_reads(nodes, result)
    ends = _ends(nodes, behind, last)
    pieces: list[Piece] = []
    takes: tuple[ir.Value, ...] = ()
    start = 0
    for end in (*ends, len(nodes) - 1):
        made = [value for node in nodes[: end + 1] for value in node.outputs if value in behind]
        gives = tuple(value for value in made if last.get(value, -1) > end and feedable(value))
        pieces.append(Piece(tuple(nodes[start : end + 1]), takes, gives))
        start, takes = end + 1, gives
    return pieces


def _moves(node: ir.Node) -> bool:
    """Tell whether a node is more than the transposition of a constant, which is read together with what reads it."""
    source = node.inputs[0] if node.op_type == "Transpose" and node.inputs else None
    return source is None or not source.is_initializer()


def _read(node: ir.Node) -> list[ir.Value]:
    """Return the values that a node reads, also inside of what it carries."""
    found = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found += [
                value
                for inner in ir.traversal.RecursiveGraphIterator(attribute.as_graph())
                for value in inner.inputs
                if value is not None
            ]
    return found


def _behind_weights(nodes: Sequence[ir.Node]) -> set[ir.Value]:
    """Return the values that take a large weight to make."""
    found: set[ir.Value] = set()
    for node in nodes:
        if _large_weights(node) or any(value in found for value in _read(node)):
            found.update(node.outputs)
    return found


def _last_reads(nodes: Sequence[ir.Node], result: ir.Value) -> dict[ir.Value, int]:
    """Return the place of the last node that reads each value; the result is read behind all of them."""
    found = {value: place for place, node in enumerate(nodes) for value in _read(node)}
    return {**found, result: len(nodes)}


def _ends(nodes: Sequence[ir.Node], behind: set[ir.Value], last: Mapping[ir.Value, int]) -> list[int]:
    """Return the places of the nodes behind which a piece ends, but for the last one."""
    crossing, open_until = [], [0] * (len(nodes) + 1)
    count = 0
    for place, node in enumerate(nodes):
        for value in node.outputs:
            if value in behind and last.get(value, -1) > place:
                count += 1
                open_until[last[value]] += 1
        count -= open_until[place]
        crossing.append(count)
    weighty = [place for place, node in enumerate(nodes) if _large_weights(node)]
    gaps = [
        min(range(one, other), key=lambda place: (crossing[place], place)) for one, other in itertools.pairwise(weighty)
    ]
    costs = [crossing[place] for place in gaps]
    edges = [max(costs, default=0), *costs, max(costs, default=0)]
    return [place for number, place in enumerate(gaps) if edges[number + 1] <= min(edges[number], edges[number + 2])]
