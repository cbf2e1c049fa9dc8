"""Pieces that compute with sizes: cuts, blocks, counts, positions, and branches that sizes decide.

Each is a thing that a real model does; with it goes a number from 2 to 1,900, and whatever a tool believes after
looking at a few sizes is likely to be wrong on the other side of that number.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from tests.property.pieces import piece
from tests.property.sketch import BOOL, FLOAT, INT64, Sketch, Value

FAR = 2**31
LONGEST = 4096  # of what is made from a computed count


def computed(g: Sketch, size: Value, steps: int = 0) -> Value:
    """Return a number computed from a size: int64 [1] to int64 [1], one to three operators of one kind each."""
    for _ in range(steps or g.rng.randint(1, 3)):
        size = g.rng.choice((_integer, _integer, _through_floats, _chosen, _clamped, _by_shape))(g, size)
    return size


def _integer(g: Sketch, size: Value) -> Value:
    kind = g.rng.choice(("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max"))
    number = g.number(2, 9) if kind == "Mul" else g.number()
    if kind == "Sub" and g.chance(0.3):
        return g.same("Sub", Value(g.ints(number), INT64, (1,)), size)
    return g.same(kind, size, g.ints(number))


def _through_floats(g: Sketch, size: Value) -> Value:
    wide = TensorProto.DOUBLE if g.chance(0.2) else FLOAT
    kind = np.float64 if wide == TensorProto.DOUBLE else np.float32
    real = g.cast(size, wide)
    number = g.const(kind(g.number()))
    way = g.rng.randrange(4)
    if way == 0:  # Ceil(n / k) · k: padding to blocks
        real = g.same("Mul", g.same("Ceil", g.same("Div", real, number)), number)
    elif way == 1:
        real = g.same("Relu", g.same("Sub", real, number)) if wide == FLOAT else g.same("Sub", real, number)
    elif way == 2:
        real = g.same("Floor", g.same("Mul", real, g.const(kind(g.rng.choice((0.5, 0.25, 0.75, 1.5))))))
    else:
        real = g.same("Sqrt", real)
    return g.cast(real, INT64)


def _chosen(g: Sketch, size: Value) -> Value:
    number = g.ints(g.number())
    longer = g.op(g.rng.choice(("Greater", "Less", "GreaterOrEqual")), [size, number], (1,), BOOL)
    other = number if g.chance(0.5) else computed(g, size, 1)
    return g.op("Where", [longer, size, other], (1,), INT64)


def _clamped(g: Sketch, size: Value) -> Value:
    low, high = sorted((g.number(1, 50), g.number()))
    return g.same("Clip", size, g.const(np.int64(low)), g.const(np.int64(high)))


def _by_shape(g: Sketch, size: Value) -> Value:
    """Go through the shape of a tensor that is made for it, as exporters do for masks."""
    made = g.op("ConstantOfShape", [bounded(g, size)], (g.fresh(),))
    return g.length(made, 0)


def bounded(g: Sketch, size: Value, most: int = LONGEST, least: int = 0) -> Value:
    """Keep a computed number inside what memory holds."""
    return g.same("Max", g.same("Min", size, g.ints(most)), g.ints(least))


def _axis(g: Sketch, value: Value) -> int:
    """Return an open axis of a value, the last but one when there is none."""
    open_axes = [axis for axis, dim in enumerate(value.dims) if isinstance(dim, str)]
    return g.rng.choice(open_axes) if open_axes else max(0, value.rank - 2)


def mean_of_rows(g: Sketch, value: Value, axis: int) -> None:
    """Divide a sum by a count: the shape of a cut shows in the numbers."""
    count = g.cast(g.length(value, axis), FLOAT)
    dims = tuple(1 if i == axis else dim for i, dim in enumerate(value.dims))
    g.give(g.op("Div", [g.reduced("ReduceSum", value, axis, keep=True), count], dims))


@piece("cut", 5.0)
def cut(g: Sketch) -> None:
    value = g.floats()
    if value is None:
        return
    axis, number = _axis(g, value), g.number()
    start, end = g.rng.choice(((0, number), (number, FAR), (-number, FAR), (0, -number), (number, 2 * number)))
    left = g.slice(value, [start], [end], [axis])
    if g.chance(0.25):  # and cut again
        left = g.slice(left, [0], [g.number()], [axis])
    g.give(left)
    if g.chance(0.5):
        mean_of_rows(g, left, axis)


@piece("cut-two-axes", 1.5)
def cut_two_axes(g: Sketch) -> None:
    value = g.floats(2, 3, 4)
    if value is None:
        return
    first, second = sorted(g.rng.sample(range(value.rank), 2))
    left = g.slice(value, [0, 0], [g.number(), g.number()], [first, second])
    g.give(left)
    mean_of_rows(g, left, first)


@piece("cut-computed", 4.0)
def cut_computed(g: Sketch) -> None:
    value = g.floats()
    if value is None:
        return
    axis = _axis(g, value)
    size = g.length(value, axis)
    number = computed(g, size)
    left = g.slice(value, [0], [number], [axis]) if g.chance(0.5) else g.slice(value, [number], [size], [axis])
    g.give(left)
    if g.chance(0.5):
        mean_of_rows(g, left, axis)


@piece("cut-strided")
def cut_strided(g: Sketch) -> None:
    value = g.floats()
    if value is None:
        return
    axis = _axis(g, value)
    if g.chance(0.4):  # backwards: same size
        start, end, step = -1, -FAR, -1
    else:
        start, end, step = 0, FAR, g.number(2, 40)
    left = g.slice(value, [start], [end], [axis], [step])
    g.give(Value(left.name, left.dtype, value.dims) if step == -1 else left)
    if g.chance(0.4):
        mean_of_rows(g, left, axis)


@piece("halves-rejoined", 2.0)
def halves_rejoined(g: Sketch) -> None:
    """Concat(f(x[:k]), x[k:]): has the size of x at every size."""
    value = g.floats()
    if value is None:
        return
    axis, number = _axis(g, value), g.number()
    first = g.same(g.rng.choice(("Relu", "Neg", "Tanh")), g.slice(value, [0], [number], [axis]))
    rest = g.slice(value, [number], [FAR], [axis])
    g.give(g.op("Concat", [first, rest], value.dims, axis=axis))


@piece("split")
def split(g: Sketch) -> None:
    value = g.floats()
    if value is None:
        return
    axis = _axis(g, value)
    size = g.length(value, axis)
    first = g.same("Min", size, g.ints(g.number())) if g.chance(0.5) else g.same("Div", size, g.ints(2))
    sizes = g.op("Concat", [first, g.same("Sub", size, first)], (2,), INT64, axis=0)
    names = [g.name("part"), g.name("part")]
    g.node("Split", [value, sizes], names, axis=axis)
    for name in names:
        part = Value(name, FLOAT, tuple(g.fresh() if i == axis else dim for i, dim in enumerate(value.dims)))
        g.give(part)
        mean_of_rows(g, part, axis)


@piece("blocks", 2.0)
def blocks(g: Sketch) -> None:
    """Whole blocks of k rows, reduced one by one; what is left over is dropped."""
    value = g.rows(2, 3)
    if value is None:
        return
    axis, number = value.rank - 2, g.number(2, 1500)
    size = g.length(value, axis)
    count = g.same("Div", size, g.ints(number))
    whole = g.slice(value, [0], [g.same("Mul", count, g.ints(number))], [axis])
    lead: list[Value | int] = [g.length(value, 0)] if value.rank == 3 else []
    width = value.dims[-1]
    assert isinstance(width, int)
    shape = g.shape_of([*lead, count, number, width])
    allow = {"allowzero": 1} if g.opset >= 14 else {}
    folded = g.op("Reshape", [whole, shape], (*value.dims[:axis], g.fresh(), number, width), **allow)
    g.give(g.reduced("ReduceMean", folded, -2, keep=False))
    g.give(g.cast(count, FLOAT))


@piece("pad-to-blocks", 1.5)
def pad_to_blocks(g: Sketch) -> None:
    """Zeros behind the rows until their number is a multiple of k."""
    value = g.rows(2, 3)
    if value is None:
        return
    axis, number = value.rank - 2, g.number(2, 600)
    size = g.length(value, axis)
    if g.chance(0.5):
        missing = g.same("Mod", g.same("Neg", size), g.ints(number))
    else:
        up = g.same("Mul", g.same("Ceil", g.same("Div", g.cast(size, FLOAT), g.const(np.float32(number)))),
                    g.const(np.float32(number)))  # fmt: skip
        missing = g.same("Sub", g.cast(up, INT64), size)
    zeros = [0] * axis
    pads = g.shape_of([*zeros, 0, 0, *zeros, missing, 0])
    dims = tuple(g.fresh() if i == axis else dim for i, dim in enumerate(value.dims))
    padded = g.op("Pad", [value, pads], dims)
    g.give(padded)
    mean_of_rows(g, padded, axis)


@piece("size-out", 2.0)
def size_out(g: Sketch) -> None:
    """A number computed from a size, as a value of its own and as a factor."""
    value = g.floats()
    if value is None:
        return
    number = computed(g, g.length(value, _axis(g, value)))
    g.give(number)
    if g.chance(0.6):
        g.give(g.op("Mul", [value, g.cast(number, FLOAT)], value.dims))


@piece("positions", 2.0)
def positions(g: Sketch) -> None:
    """The number of each row, looked up in a table, compared, or added."""
    value = g.rows(2, 3)
    if value is None:
        return
    axis, width = value.rank - 2, value.dims[-1]
    assert isinstance(width, int)
    size = g.op("Squeeze", [g.length(value, axis), g.ints(0)], (), INT64)
    numbers = g.op("Range", [g.const(np.int64(0)), size, g.const(np.int64(1))], (value.dims[axis],), INT64)
    way = g.rng.randrange(4)
    if way == 0:
        table = g.weights(LONGEST, width, scale=0.5)
        found = g.op("Gather", [table, numbers], (value.dims[axis], width), axis=0)
        g.give(g.op("Add", [value, found], value.dims))
        return
    column = g.op("Unsqueeze", [numbers, g.ints(1)], (value.dims[axis], 1), INT64)
    if way == 1:
        early = g.op("Less", [column, g.const(np.int64(g.number()))], column.dims, BOOL)
        g.give(g.op("Where", [early, value, g.scalar(g.rng.choice((0.0, -1.0)))], value.dims))
    elif way == 2:
        block = g.same(g.rng.choice(("Div", "Mod")), column, g.const(np.int64(g.number())))
        g.give(g.op("Add", [value, g.cast(block, FLOAT)], value.dims))
    else:
        share = g.op("Div", [g.cast(column, FLOAT), g.cast(g.length(value, axis), FLOAT)], column.dims)
        g.give(g.op("Mul", [value, share], value.dims))


@piece("branch", 2.0)
def branch(g: Sketch) -> None:
    """If the rows are more than k, one thing, else another."""
    value = g.floats()
    if value is None:
        return
    axis = _axis(g, value)
    size = g.length(value, axis)
    compare = g.rng.choice(("Greater", "Less", "Equal", "GreaterOrEqual"))
    number = g.ints(g.number(1))
    asked = g.op(compare, [size, number], (1,), BOOL)
    decided = g.op("Squeeze", [asked, g.ints(0)], (), BOOL)
    way = g.rng.randrange(3)
    if way == 0:
        zero, one_axis = g.ints(0), g.ints(axis)
        yes, no = g.branch("Slice", [value, zero, number, one_axis]), g.branch("Identity", [value])
        dims = tuple(g.fresh() if i == axis else dim for i, dim in enumerate(value.dims))
    elif way == 1:
        yes, no = g.branch("Relu", [value]), g.branch("Neg", [value])
        dims = value.dims
    else:
        yes, no = g.branch("Mul", [value, g.scalar(2.0, rank=0)]), g.branch("Identity", [value])
        dims = value.dims
    if g.chance(0.3):
        yes, no = no, yes
    chosen = g.op("If", [decided], dims, then_branch=yes, else_branch=no)
    g.give(chosen)
    if way == 0:
        mean_of_rows(g, chosen, axis)


@piece("loop")
def loop(g: Sketch) -> None:
    """Add a value to itself as often as a number computed from a size says, at most six times."""
    value = g.floats()
    if value is None:
        return
    number = bounded(g, computed(g, g.length(value, _axis(g, value))), 6)
    trips = g.op("Squeeze", [number, g.ints(0)], (), INT64)
    step, going, state, still, grown = (g.name(hint) for hint in ("step", "going", "state", "still", "grown"))
    body = helper.make_graph(
        [helper.make_node("Identity", [going], [still]), helper.make_node("Add", [state, value.name], [grown])],
        g.name("body"),
        [
            helper.make_tensor_value_info(step, INT64, []),
            helper.make_tensor_value_info(going, BOOL, []),
            helper.make_tensor_value_info(state, FLOAT, None),
        ],
        [helper.make_tensor_value_info(still, BOOL, []), helper.make_tensor_value_info(grown, FLOAT, None)],
    )
    start = g.same("Identity", value) if g.chance(0.5) else value
    g.give(g.op("Loop", [trips, "", start], value.dims, body=body))


@piece("made-for-size")
def made_for_size(g: Sketch) -> None:
    """A tensor of a computed size, reduced so that its size shows."""
    value = g.floats()
    if value is None:
        return
    count = bounded(g, computed(g, g.length(value, _axis(g, value))))
    if g.chance(0.5):
        made = g.op("ConstantOfShape", [count], (g.fresh(),), value=helper.make_tensor("one", FLOAT, [1], [0.5]))
    else:
        made = g.op("Expand", [g.scalar(0.5, rank=1), count], (g.fresh(),))
    total = g.reduced("ReduceSum", made, 0, keep=True)
    g.give(total)
    g.give(g.op("Mul", [value, total], value.dims))
