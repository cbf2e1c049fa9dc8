"""A graph under construction: values with the dimensions that can be told while it is drawn.

A dimension is a number, the name of an axis, or a made-up name behind `?`: a size that only a run of the graph tells.
Two dimensions of the same word are equal at every size. Pieces (`pieces_*.py`) take values from a sketch and add nodes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
IR_VERSION = 9
OPSET = 17

Dim = int | str
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    Attributes:
        name: in the graph.
        dtype: of `onnx.TensorProto`.
        dims: numbers, names of axes, and `?1`, `?2` for sizes that only a run tells.
    """

    name: str
    dtype: int
    dims: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.dims)


Wanted = Callable[[Value], bool]


@dataclass
class Sketch:
    """A graph that grows.

    Attributes:
        rng: decides everything that is decided.
        opset: version of the standard operators.
        nodes: in order.
        inputs: of the graph.
        initializers: by name.
        constants: all constants by name, those of Constant nodes among them.
        pool: what pieces may build on, the oldest first.
        square: some value has as many entries as an axis squared; sizes are kept small.
        pieces: names of the pieces that were used, in order.
    """

    rng: random.Random
    opset: int = OPSET
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    initializers: dict[str, Array] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    pool: list[Value] = field(default_factory=list)
    square: bool = False
    pieces: list[str] = field(default_factory=list)
    _taken: set[str] = field(default_factory=set)
    _count: int = 0

    # Names

    def name(self, hint: str = "v") -> str:
        """Return a new name; now and then one that a tool could have chosen for itself."""
        self._count += 1
        plain = f"{hint}{self._count}"
        style = self.rng.random()
        if style < 0.04 and self.pool:
            last = self.pool[-1].name
            plain = self.rng.choice((f"{last}~1", f"{last}::float32", f"{last}_fused", f"{last}/Shape", f"{last}.1"))
        elif style < 0.15:
            plain = f"/layer.{self._count}/{hint}_output_0"
        name = plain if plain not in self._taken else f"{plain}_{self._count}"
        self._taken.add(name)
        return name

    def take(self, name: str) -> str:
        """Reserve a name that the caller has chosen."""
        self._taken.add(name)
        return name

    def fresh(self) -> str:
        """Return a dimension that equals no other."""
        self._count += 1
        return f"?{self._count}"

    # Choices

    def chance(self, share: float) -> bool:
        """Tell yes in a share of the cases."""
        return self.rng.random() < share

    def number(self, least: int = 2, most: int = 1900) -> int:
        """Draw a number, small ones as often as large ones."""
        low, high = np.log(least), np.log(most)
        return round(float(np.exp(self.rng.uniform(low, high))))

    def pick(self, wanted: Wanted) -> Value | None:
        """Return a value of the pool that fits, later ones more often; None when there is none."""
        fitting = [value for value in self.pool if wanted(value)]
        if not fitting:
            return None
        return fitting[-1] if self.chance(0.6) else self.rng.choice(fitting)

    def floats(self, *ranks: int) -> Value | None:
        """Return a float32 tensor of one of the ranks, of any but 0 when none is given."""
        return self.pick(lambda value: value.dtype == FLOAT and (value.rank in ranks if ranks else value.rank > 0))

    def rows(self, *ranks: int) -> Value | None:
        """Return a float32 tensor with an open axis before a last one of known size."""
        return self.pick(
            lambda value: (
                value.dtype == FLOAT
                and value.rank in (ranks or (2, 3))
                and isinstance(value.dims[-2], str)
                and isinstance(value.dims[-1], int)
            )
        )

    # Growth

    def input(self, name: str, dtype: int, dims: Sequence[Dim]) -> Value:
        """Add an input."""
        value = Value(self.take(name), dtype, tuple(dims))
        self.inputs.append(value)
        self.pool.append(value)
        return value

    def const(self, value: object, dtype: Any = None, hint: str = "c") -> str:
        """Add a constant, as an initializer or as a node, and return its name."""
        array = np.asarray(value, dtype)
        name = self.name(hint)
        self.constants[name] = array
        if self.chance(0.75):
            self.initializers[name] = array
        else:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name)))
        return name

    def ints(self, *values: int) -> str:
        """Add an int64 vector."""
        return self.const(list(values), np.int64, "i")

    def scalar(self, value: float, *, rank: int | None = None) -> str:
        """Add one float32 number, as a tensor of a rank from 0 to 3 when none is given: exporters differ."""
        axes = self.rng.choice((0, 0, 0, 1, 1, 2, 3)) if rank is None else rank
        return self.const(np.full((1,) * axes, value, np.float32), hint="k")

    def weights(self, *shape: int, scale: float | None = None, shift: float = 0.0) -> str:
        """Add float32 weights, normal, by default shrunk by the root of their first dimension."""
        random_numbers = np.random.default_rng(self.rng.randrange(2**31))
        factor = 1 / np.sqrt(max(1, shape[0])) if scale is None else scale
        return self.const((random_numbers.standard_normal(shape) * factor + shift).astype(np.float32), hint="w")

    def op(
        self,
        kind: str,
        inputs: Sequence[Value | str],
        dims: Sequence[Dim],
        dtype: int = FLOAT,
        **attributes: Any,
    ) -> Value:
        """Add a node with one output.

        Args:
            kind: the operator.
            inputs: values, names, or empty strings.
            dims: of the output.
            dtype: of the output.
            attributes: of the operator.

        Returns:
            The output; it is not in the pool yet.
        """
        output = self.name(kind.lower())
        self.node(kind, inputs, [output], **attributes)
        return Value(output, dtype, tuple(dims))

    def node(self, kind: str, inputs: Sequence[Value | str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add a node with outputs of these names."""
        names = [item if isinstance(item, str) else item.name for item in inputs]
        label = self.name("node") if self.chance(0.8) else ""
        self.nodes.append(helper.make_node(kind, names, list(outputs), name=label, **attributes))

    def give(self, value: Value) -> None:
        """Offer a value to the pieces that follow."""
        self.pool.append(value)

    # What many pieces need

    def same(self, kind: str, value: Value, *others: Value | str, **attributes: Any) -> Value:
        """Add a node whose output is like its first input."""
        return self.op(kind, [value, *others], value.dims, value.dtype, **attributes)

    def cast(self, value: Value, dtype: int) -> Value:
        """Add a Cast."""
        return self.op("Cast", [value], value.dims, dtype, to=dtype)

    def length(self, value: Value, axis: int) -> Value:
        """Return the size of an axis as int64 [1], spelled in one of the ways of exporters."""
        way = self.rng.randrange(4)
        if way == 0 and self.opset >= 15:
            return self.op("Shape", [value], (1,), INT64, start=axis, end=axis + 1)
        shape = self.op("Shape", [value], (value.rank,), INT64)
        if way == 1:
            return self.op("Gather", [shape, self.ints(axis)], (1,), INT64, axis=0)
        if way == 2:
            return self.op("Slice", [shape, self.ints(axis), self.ints(axis + 1), self.ints(0)], (1,), INT64)
        one = self.op("Gather", [shape, self.const(np.int64(axis))], (), INT64, axis=0)
        return self.op("Unsqueeze", [one, self.ints(0)], (1,), INT64)

    def reduced(self, kind: str, value: Value, axis: int, *, keep: bool) -> Value:
        """Add a reduction over one axis; from opset 18 on the axis is an input, for ReduceSum always."""
        gone = axis % value.rank
        dims = tuple(1 if i == gone else dim for i, dim in enumerate(value.dims) if keep or i != gone)
        if kind == "ReduceSum" or self.opset >= 18:
            return self.op(kind, [value, self.ints(axis)], dims, keepdims=int(keep))
        return self.op(kind, [value], dims, axes=[axis], keepdims=int(keep))

    def shape_of(self, parts: Sequence[Value | int]) -> Value:
        """Join sizes, int64 [1] or numbers, to a shape."""
        vectors = [self.ints(part) if isinstance(part, int) else part for part in parts]
        return self.op("Concat", vectors, (len(parts),), INT64, axis=0)

    def slice(self, value: Value, starts: Sequence[Value | int], ends: Sequence[Value | int], axes: Sequence[int],
              steps: Sequence[int] = ()) -> Value:  # fmt: skip
        """Cut axes; the sizes that are left are not known.

        Args:
            value: what is cut.
            starts: numbers, or int64 [1], one per axis.
            ends: the same.
            axes: which.
            steps: 1 when empty.
        """
        bounds = []
        for part in (starts, ends):
            numbers = [item for item in part if isinstance(item, int)]
            bounds.append(self.ints(*numbers) if len(numbers) == len(part) else self.shape_of(part))
        extra = [self.ints(*steps)] if steps else []
        dims = tuple(self.fresh() if axis in axes else dim for axis, dim in enumerate(value.dims))
        return self.op("Slice", [value, *bounds, self.ints(*axes), *extra], dims, value.dtype)

    def branch(
        self, kind: str, inputs: Sequence[Value | str], dtype: int = FLOAT, **attributes: Any
    ) -> onnx.GraphProto:
        """Return a body of one node for an If, which reads values of the graph around it."""
        names = [item if isinstance(item, str) else item.name for item in inputs]
        output = self.name("inner")
        node = helper.make_node(kind, names, [output], **attributes)
        info = helper.make_tensor_value_info(output, dtype, None)
        return helper.make_graph([node], self.name("body"), [], [info])

    def model(self, outputs: Sequence[Value]) -> onnx.ModelProto:
        """Return the graph with these outputs.

        Args:
            outputs: of the graph; their names are those of the values, sizes that only a run tells stay open.
        """
        told = [_declared(value) for value in outputs]
        graph = helper.make_graph(
            self.nodes,
            "drawn",
            [_declared(value) for value in self.inputs],
            told,
            [numpy_helper.from_array(array, name) for name, array in self.initializers.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        made.ir_version = 10 if self.opset > 20 else IR_VERSION
        return made


def _declared(value: Value) -> onnx.ValueInfoProto:
    """Return what a file says of a value: sizes that only a run tells stay without a name."""
    dims = [None if isinstance(dim, str) and dim.startswith("?") else dim for dim in value.dims]
    return helper.make_tensor_value_info(value.name, value.dtype, dims)
