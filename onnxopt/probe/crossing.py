"""Find the lengths at which a decoder's rotary tables change, by running what computes them.

Some tables hang on how long the text is, not on the position alone. Longrope (Phi-3) turns every position by its long
factors as soon as there are more tokens than the model was first trained with; dynamic NTK makes new tables for every
length beyond a limit. Keys in a cache are turned by the tables of the time when they were made, and rows of a batch
share the tables of the longest. So whoever runs such a graph must know where they change. No name of a model or of a
config's entry says so here: the side graph of the tables is run on both sides of every number in it, and at lengths
that double, up to the model's own limit.

Source: transformers' modeling_rope_utils.dynamic_rope_update and modeling_phi3.prepare_inputs_for_generation; Ding et
    al. 2024, arXiv:2402.13753 (LongRoPE).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxopt.graph import (
    SMALL_CONSTANT_BYTES,
    ancestors,
    constant,
    dims,
    has_few_ancestors,
    has_subgraph,
    is_constant,
    is_op,
    known_dims,
    number,
)
from onnxopt.graph.cache import PAST, SEQUENCE, complete
from onnxopt.graph.roles import own_axis
from onnxopt.graph.sides import Crossings
from onnxopt.probe.program import ProbeError
from onnxopt.probe.runners import GraphRunner, dtypes_of
from onnxopt.spec import Array, Feeds

LONGEST_RUN = 2**17  # tokens: tables of 128 float32 angles take 64 MiB
USUAL_RUN = 4096  # where nothing says how long a text may be
FIRST_RUN = 8
MOST_NUMBERS = 64  # of a side graph, that may be lengths
MOST_CROSSINGS = 8
ROUNDING = 2.0**-22  # the runtime's cosine of one angle depends on its place among others by 2**-24
LARGEST = 400  # nodes that compute a table
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
SHAPES = ((5, 0), (7, 0), (5, 6))  # new and seen tokens that tell which axis follows which
_READ = ("attention_mask", "position_ids")  # the contract's names of what tables are made of

logger = logging.getLogger(__name__)


def crossings_of(model: ir.Model, *, longest: int = 0) -> Crossings:
    """Return the lengths at which the tables of a decoder or an encoder change.

    Args:
        model: a graph with ids and a mask, and with or without a cache; its values have unique names.
        longest: the most tokens that it takes; 0 when unknown.
    """
    try:
        tables = _Tables.of(model)
        return tables.crossings(longest) if tables.values else Crossings()
    except (ProbeError, ValueError, KeyError) as error:
        logger.info("what the rotary tables hang on cannot be probed: %s", error)
        return Crossings()


def crossings_of_file(path: Path, *, longest: int = 0) -> Crossings:
    """Return the lengths at which the tables of a file change, whoever wrote it; none where it cannot be read.

    Args:
        path: an .onnx file that ONNX Runtime opens.
        longest: the most tokens that it takes; 0 when unknown.
    """
    try:
        model = ir.load(path)
    except Exception as error:  # noqa: BLE001  onnx_ir and protobuf raise several kinds; the runtime took the file
        logger.info("%s cannot be looked into: %s", path, error)
        return Crossings()
    for value in model.graph.inputs:
        found = dims(value)
        if found is not None:
            named = (own_axis(value.name or "", place) if dim is None else dim for place, dim in enumerate(found))
            value.shape = ir.Shape(named)
    return crossings_of(model, longest=longest)


def _edge_of_side(model: ir.Model) -> list[ir.Value]:
    """Return the float values that hang on mask, positions and sizes alone and meet something else.

    Those that many nodes compute are left out: sizes of what lies deep in the model would need the model to run. Few
    tools write the types of inner values; what is not written the runtime tells.

    Raises:
        ProbeError: it does not.
    """
    side: set[ir.Value] = {value for value in model.graph.inputs if value.name in _READ}
    inner: set[ir.Node] = set()
    for node in model.graph:
        if is_op(node, "Shape", "Size") or all(value in side or is_constant(value) for value in _needs(node)):
            side.update(node.outputs)
            inner.add(node)
    found = [
        value
        for node in model.graph
        if node in inner
        for value in node.outputs
        if (value.dtype is None or value.dtype in FLOATS)
        and has_few_ancestors(value, LARGEST)
        and (value.is_graph_output() or any(use.node not in inner for use in value.uses()))
        and any(leaf.is_graph_input() for leaf in ancestors(value)[1])
    ]
    types = dtypes_of(model, found)
    return [value for value in found if types.get(value) in FLOATS]


def _distinct(model: ir.Model, values: Sequence[ir.Value]) -> list[ir.Value]:
    """Return one value of each kind: what every layer computes anew from the same by the same nodes is one table."""
    nodes = {node for value in values for node in ancestors(value)[0]}
    numbers: dict[object, int] = {}
    kinds: dict[ir.Value, int] = {}

    def kind_of(value: ir.Value | None) -> int:
        if value is not None and value in kinds:
            return kinds[value]
        small = constant(value) if value is not None and _is_small(value) else None
        key = id(value) if small is None else (str(small.dtype), small.shape, small.tobytes())
        return numbers.setdefault(key, len(numbers))

    for node in model.graph:
        if node not in nodes:
            continue
        does = id(node) if has_subgraph(node) else (node.domain, node.op_type, node.overload, _settings(node))
        given = tuple(kind_of(value) for value in node.inputs)
        for index, value in enumerate(node.outputs):
            kinds[value] = numbers.setdefault((does, given, index), len(numbers))
    return list({kind_of(value): value for value in reversed(values)}.values())[::-1]


def _is_small(value: ir.Value) -> bool:
    """Tell whether a value is a constant of few bytes."""
    return is_constant(value) and (value.const_value is None or value.const_value.nbytes <= SMALL_CONSTANT_BYTES)


def _settings(node: ir.Node) -> tuple[object, ...]:
    """Return the attributes of a node as something that is equal for equal ones."""
    found: list[object] = []
    for name, one in sorted(node.attributes.items()):
        value = one.value
        if isinstance(value, ir.TensorProtocol):
            value = (str(value.dtype), value.shape.numpy(), value.tobytes())
        found.append((name, str(value)))
    return tuple(found)


def _needs(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads, its subgraphs included."""
    yield from (value for value in node.inputs if value is not None)
    if not has_subgraph(node):
        return
    for attribute in node.attributes.values():
        graphs = {ir.AttributeType.GRAPH: [attribute.value], ir.AttributeType.GRAPHS: attribute.value}
        for graph in graphs.get(attribute.type, ()):
            inside = [*graph] if isinstance(graph, ir.Graph) else []
            made = {value for one in inside for value in one.outputs} | set(graph.inputs)
            for one in inside:
                yield from (value for value in _needs(one) if value not in made)
            yield from (value for value in graph.outputs if value not in made)


@dataclass
class _Tables:
    """What is looked at.

    Attributes:
        model: it lies in.
        values: the tables.
        axes: of each the axis of the positions; None where all of it changes.
    """

    model: ir.Model
    values: tuple[ir.Value, ...] = ()
    axes: tuple[int | None, ...] = ()
    _runner: GraphRunner | None = None
    _seen: dict[int, list[Array]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model) -> _Tables:
        """Find the tables; biases and masks, which have an axis for the keys, are none.

        Raises:
            ProbeError: the side graph does not run.
        """
        edge = _distinct(model, _edge_of_side(model))
        if not edge:
            return cls(model)
        runner = GraphRunner(model, edge, with_outputs=False)
        runs = [runner.run(_feeds(model, new, past))[1] for new, past in SHAPES]
        places = {value: _position_axis([run[value] for run in runs]) for value in edge}
        tables = tuple(value for value in edge if places[value] >= -1)
        return cls(model, tables, tuple(axis if axis >= 0 else None for axis in map(places.__getitem__, tables)))

    def crossings(self, longest: int) -> Crossings:
        """Return where they change, up to a length.

        Raises:
            ProbeError: the side graph does not run so long.
        """
        numbers = self._numbers()
        top = min(longest or max([USUAL_RUN, *(one + 2 for one in numbers)]), LONGEST_RUN)
        near = {one + step for one in numbers for step in (-1, 0, 1)}
        found = {length for length in near if 2 <= length < top and self._changes(length)}
        found |= set(self._between(top))
        at = sorted(found)
        for length in at:
            if length + 1 < top and self._changes(length + 1):
                return Crossings(tuple(one for one in at if one < length), length)
        return Crossings(tuple(at), longest if longest and self._grow_beyond(longest) else 0)

    def _grow_beyond(self, longest: int) -> bool:
        """Tell whether every token beyond the most that the model takes changes them: why it takes no more."""
        if longest + 2 > LONGEST_RUN:
            return False
        try:
            return self._changes(longest) and self._changes(longest + 1)
        except ProbeError:  # a table of positions ends there
            return False

    def _numbers(self) -> list[int]:
        """Return the numbers in the side graph that may be lengths: what is compared with one, or divided by."""
        nodes = {node for value in self.values for node in ancestors(value)[0]}
        return _numbers_of([*nodes, *(one for node in nodes for one in _inside(node))])

    def _between(self, top: int) -> Iterator[int]:
        """Yield the lengths at which tables change, found by doubling the length and halving what lies between."""
        count = 0
        for low, high in itertools.pairwise(_doubled(top)):
            start = low
            while start < high and count < MOST_CROSSINGS and self._differ(start, high):
                left, right = start, high
                while right - left > 1:
                    middle = (left + right) // 2
                    left, right = (left, middle) if self._differ(start, middle) else (middle, right)
                yield left
                start, count = right, count + 1

    def _changes(self, length: int) -> bool:
        """Tell whether a token more than `length` changes what the tables say of the tokens before it."""
        return self._differ(length, length + 1)

    def _differ(self, short: int, long: int) -> bool:
        for axis, first, other in zip(self.axes, self._run(short), self._run(long), strict=True):
            if axis is None:
                if first.shape != other.shape or not np.allclose(first, other, rtol=0.0, atol=ROUNDING):
                    return True
                continue
            rows = [np.moveaxis(one, axis, 0)[:short] for one in (first, other)]
            if not np.allclose(rows[0], rows[1], rtol=0.0, atol=ROUNDING):
                return True
        return False

    def _run(self, length: int) -> list[Array]:
        """Return the tables for one text of that many tokens; the last two are remembered."""
        if length not in self._seen:
            if self._runner is None:
                self._runner = GraphRunner(self.model, self.values, with_outputs=False)
            found = self._runner.run(_feeds(self.model, length, 0))[1]
            while len(self._seen) > 1:
                self._seen.pop(next(iter(self._seen)))
            self._seen[length] = [found[value] for value in self.values]
        return self._seen[length]


def telling_lengths_of_tables(nodes: Iterable[ir.Node], longest: int) -> list[int]:
    """Return the lengths at which tables must be alike that are held to hang on positions alone.

    Args:
        nodes: what computes them.
        longest: the most positions.
    """
    near = {one + step for one in _numbers_of(nodes) for step in (-1, 0, 1)}
    return sorted({length for length in (*near, *_doubled(longest)) if 0 < length <= longest})


def _numbers_of(nodes: Iterable[ir.Node]) -> list[int]:
    found = {number(value) for node in nodes for value in node.inputs}
    return sorted({int(one) for one in found if one is not None and 2 <= one <= LONGEST_RUN})[-MOST_NUMBERS:]


def _doubled(top: int) -> list[int]:
    """Return lengths from 2 on, each at least twice the one before, the last of them `top`."""
    steps = [2]
    while steps[-1] < top:
        steps.append(min(max(FIRST_RUN, 2 * steps[-1]), top))
    return steps


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.value


def _position_axis(runs: Sequence[Array]) -> int:
    """Return which axis of a value follows the new tokens; -1 when none does, -2 when it is no table."""
    if runs[0].dtype.kind == "i" or runs[0].dtype == np.bool_ or len({run.ndim for run in runs}) != 1:
        return -2
    found = -1
    for axis, sizes in enumerate(zip(*(run.shape for run in runs), strict=True)):
        if sizes == tuple(new for new, _ in SHAPES):
            if found >= 0:
                return -2
            found = axis
        elif len(set(sizes)) > 1:
            return -2  # an axis for the keys, or one that is made of several
    if found < 0 and not np.array_equal(runs[0], runs[1]):
        return -2  # the table of the last position, say: another position, not another table
    return found


def _feeds(model: ir.Model, new: int, past: int) -> Feeds:
    """Return inputs for one row without padding; only those that are read matter, of the others the size.

    Raises:
        ProbeError: the size of an input is not known.
    """
    sizes = _sizes(model, new, past)
    made: Feeds = {}
    for value in model.graph.inputs:
        shape, kind = known_dims(value), (value.dtype or ir.DataType.INT64).numpy()
        if shape is None or any(isinstance(dim, str) and dim not in sizes for dim in shape):
            raise ProbeError(f"the sizes of {value.name} are not known")
        made[value.name or ""] = np.ones([sizes[dim] if isinstance(dim, str) else dim for dim in shape], kind)
    if _READ[1] in made:
        made[_READ[1]] = np.broadcast_to(np.arange(past, past + new), made[_READ[1]].shape).astype(np.int64)
    return made


def _sizes(model: ir.Model, new: int, past: int) -> dict[str, int]:
    """Return the size of each axis, by what it is an axis of: files of other tools have names of their own."""
    sizes = {"batch": 1, **complete({SEQUENCE: new, PAST: past})}
    for value in model.graph.inputs:
        axes = known_dims(value) or ()
        if len(axes) == 2:
            length = new + past if value.name == _READ[0] else new
            own = dict(zip(axes, (1, length), strict=True))
        else:
            own = dict(zip(axes, (1, 0, past), strict=False)) if len(axes) == 4 else {}
        # an axis of ids and mask alike is one of new tokens: such a graph has seen none before
        sizes |= {axis: min(size, sizes.get(axis, size)) for axis, size in own.items() if isinstance(axis, str)}
    return sizes
