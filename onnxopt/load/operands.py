"""Fill inputs that steer an operator: a shape, axes, a number of rows, a threshold; most other values would not run.

What an input means is read off the operator that reads it, as its specification says (ONNX operators: Reshape, Resize,
Slice and so on); nothing is read off names. Values differ from seed to seed where the operator allows several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.graph import Dim, attribute, dims, is_op
from onnxopt.spec import Array

SAME_VALUES = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten")
LONGEST_WALK = 64  # uses that are looked at; an input that steers is read near its entry


@dataclass(frozen=True)
class Operand:
    """What one input is to the operator that reads it.

    Attributes:
        operator: its type.
        place: number of the input there.
        source: the graph input that is the operator's data; empty when something computes that.
        data: dimensions of the data as the file declares them, None when it does not.
        made: dimensions of the result as the file declares them, None when it does not.
        axis: the attribute, 0 when there is none.
        parts: number of outputs.
    """

    operator: str
    place: int
    source: str = ""
    data: tuple[Dim, ...] | None = None
    made: tuple[Dim, ...] | None = None
    axis: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Asked:
    """What a value is made for.

    Attributes:
        operand: what it is to its operator.
        count: number of elements.
        data: size of the operator's data, None where it is not known.
        seed: tells cases apart.
    """

    operand: Operand
    count: int
    data: tuple[int, ...] | None
    seed: int

    @property
    def rank(self) -> int:
        """Dimensions of the data, at least as many as there are elements."""
        return len(self.data) if self.data is not None else self.count


def operand_of(value: ir.Value) -> Operand | None:
    """Return what an input is to the first operator that it steers, None when it steers none."""
    queue, seen = [value], 0
    while queue and seen < LONGEST_WALK:
        current = queue.pop(0)
        for node, place in current.uses():
            seen += 1
            if is_op(node, node.op_type) and (node.op_type, place) in FILLS:
                return _described(node, place)
            if place == 0 and is_op(node, *SAME_VALUES):
                queue.extend(node.outputs)
    return None


def _described(node: ir.Node, place: int) -> Operand:
    data = node.inputs[0]
    axis = attribute(node, "axis")
    return Operand(
        node.op_type,
        place,
        (data.name or "") if data is not None and data.is_graph_input() else "",
        dims(data),
        dims(node.outputs[0]),
        axis if isinstance(axis, int) else 0,
        len(node.outputs),
    )


def steering(
    operand: Operand, shape: Sequence[int], given: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], seed: int
) -> Array:
    """Return a value under which the operator runs.

    Args:
        operand: what the input is to it.
        shape: of the input.
        given: shape of each graph input.
        sizes: of each axis.
        seed: same seed, same value.

    Returns:
        float64 or int64 of `shape`; the caller casts it.
    """
    data = given.get(operand.source) if operand.source else _sized(operand.data, sizes)
    count = math.prod(shape)
    made = FILLS[operand.operator, operand.place](Asked(operand, count, data, seed))
    return np.resize(np.asarray(made), count).reshape(shape)


def _sized(declared: Sequence[Dim] | None, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    if declared is None:
        return None
    found = [sizes.get(dim) if isinstance(dim, str) else dim for dim in declared]
    known = tuple(size for size in found if size is not None)
    return known if len(known) == len(found) else None


# --------------------------------------------------------------------------------------------------------------- values

Made = float | Sequence[float]


def _new_shape(asked: Asked) -> Made:
    """Return the shape that the file declares for the result where it fits, else everything along one dimension."""
    declared = [dim for dim in asked.operand.made or () if isinstance(dim, int)]
    total = math.prod(asked.data) if asked.data is not None else None
    if len(declared) == asked.count and total in (None, math.prod(declared)):
        return declared
    if total == 0 and asked.data is not None:
        return [0] * asked.count
    place = asked.seed % max(asked.count, 1)
    return [-1 if index == place else 1 for index in range(asked.count)]


def _any_shape(asked: Asked) -> Made:
    return [2 + (index + asked.seed) % 3 for index in range(asked.count)]


def _grid_shape(asked: Asked) -> Made:
    """Return [rows of theta, channels, sides of the image]."""
    batch = asked.data[0] if asked.data else 1
    return [batch, *(2 + (index + asked.seed) % 3 for index in range(asked.count - 1))]


def _scales(asked: Asked) -> Made:
    """Return what makes the last two dimensions larger; the kernels for images take no other dimension."""
    factor = (2.0, 1.0, 1.5, 3.0)[asked.seed % 4]
    return [factor if index >= asked.count - 2 else 1.0 for index in range(asked.count)]


def _new_sides(asked: Asked) -> Made:
    """Return the sizes of the data, the last two as large as `_scales` would make them, or larger by one."""
    if asked.data is None or len(asked.data) < asked.count:
        return [1 + asked.seed % 2] * asked.count
    kept = asked.data[len(asked.data) - asked.count :]
    return [size + (asked.seed % 3 if index >= asked.count - 2 else 0) for index, size in enumerate(kept)]


def _axes(asked: Asked) -> Made:
    """Return distinct axes, from another end in every second case."""
    return range(asked.count) if asked.seed % 2 == 0 else [index - asked.rank for index in range(asked.count)]


def _leading(asked: Asked) -> Made:
    return range(asked.count)


def _ones_axes(asked: Asked) -> Made:
    """Return the axes of the data along which it has one entry, as many as are asked for."""
    found = [axis for axis, size in enumerate(asked.data or ()) if size == 1][: asked.count]
    return found if len(found) == asked.count else range(asked.count)


def _share(asked: Asked) -> Made:
    """Return sizes that add up to that of the axis which is split."""
    operand = asked.operand
    if asked.data is None or not asked.count or not -len(asked.data) <= operand.axis < len(asked.data):
        return 1.0
    each, rest = divmod(asked.data[operand.axis], asked.count)
    late = asked.count - 1 if asked.seed % 2 == 0 else 0
    return [each + (rest if index == late else 0) for index in range(asked.count)]


def _rows(asked: Asked) -> Made:
    """Return how many entries are kept of an axis."""
    data, axis = asked.data, asked.operand.axis
    most = data[axis] if data and -len(data) <= axis < len(data) else 1
    return max(1, min(1 + asked.seed % 3, most))


def _borders(asked: Asked) -> Made:
    """Return how far each side is padded: by one where there is something to reflect."""
    data = asked.data
    if data is None or 2 * len(data) != asked.count:
        return 0
    return [int(size > 1 and (asked.seed + index) % 2 == 0) for index, size in enumerate((*data, *data))]


def _fixed(*values: float) -> Callable[[Asked], Made]:
    """Return a maker that takes one of some values, by the seed."""
    return lambda asked: values[asked.seed % len(values)]


# from which operators an input is filled, by the number of the input; what is missing runs with any value
FILLS: Mapping[tuple[str, int], Callable[[Asked], Made]] = {
    ("Reshape", 1): _new_shape,
    ("ConstantOfShape", 0): _any_shape,
    ("CenterCropPad", 1): _any_shape,
    ("AffineGrid", 1): _grid_shape,
    ("Resize", 2): _scales,
    ("Upsample", 1): _scales,
    ("Resize", 3): _new_sides,
    ("Slice", 1): _fixed(0, 1),
    ("Slice", 2): _fixed(2, 3, 2**31 - 1),
    ("Slice", 3): _leading,
    ("Slice", 4): _fixed(1),
    ("Squeeze", 1): _ones_axes,
    ("Unsqueeze", 1): _leading,
    ("Pad", 1): _borders,
    ("Pad", 3): _leading,
    ("CumSum", 1): _fixed(0, -1),
    ("CumProd", 1): _fixed(0, -1),
    ("Split", 1): _share,
    ("SplitToSequence", 1): _share,
    ("TopK", 1): _rows,
    ("Tile", 1): _fixed(1, 2),
    ("Range", 0): _fixed(1, 0),
    ("Range", 1): _fixed(6, 9, 4),
    ("Range", 2): _fixed(1, 2),
    ("OneHot", 1): _fixed(5, 7),
    ("NonMaxSuppression", 2): _fixed(2, 3, 1),
    ("NonMaxSuppression", 3): _fixed(0.5, 0.3, 0.7),
    ("NonMaxSuppression", 4): _fixed(0.0, 0.2),
    ("Dropout", 1): _fixed(0.0, 0.25, 0.5),
    ("Dropout", 2): _fixed(0),  # in training it draws; what it draws is not compared
    ("RoiAlign", 2): _fixed(0),
    ("MelWeightMatrix", 0): _fixed(8, 10),
    ("MelWeightMatrix", 1): _fixed(64, 128),
    ("MelWeightMatrix", 2): _fixed(8192, 16000),
    ("MelWeightMatrix", 3): _fixed(0, 20),
    ("MelWeightMatrix", 4): _fixed(4000, 3800),
    ("Loop", 0): _fixed(3, 2, 5),
    **{
        (f"Reduce{kind}", 1): _axes
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}
