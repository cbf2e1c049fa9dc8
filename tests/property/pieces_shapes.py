"""Pieces that move data about: reshapes, transposes, pads, tiles, casts, masks of rows, sizes that follow the data."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from tests.property.pieces import piece
from tests.property.pieces_sizes import mean_of_rows
from tests.property.sketch import BOOL, FLOAT, INT64, Sketch, Value

FAR = 2**31


def _shape_like(g: Sketch, value: Value) -> Value:
    return g.op("Shape", [value], (value.rank,), INT64)


@piece("fold-and-back", 2.0)
def fold_and_back(g: Sketch) -> None:
    """[a, b, c] → [a·b, c] → something → [a, b, c], the last by the shape that was there before."""
    value = g.pick(lambda v: v.dtype == FLOAT and v.rank >= 3 and isinstance(v.dims[-1], int))
    if value is None:
        return
    width = value.dims[-1]
    assert isinstance(width, int)
    flat = g.op("Reshape", [value, g.ints(-1, width)], (g.fresh(), width))
    if g.chance(0.6):
        flat = g.op("MatMul", [flat, g.weights(width, width)], flat.dims)
    if g.chance(0.4):
        flat = g.same(g.rng.choice(("Relu", "Tanh", "Sigmoid")), flat)
    if g.chance(0.5):
        back: Value | str = _shape_like(g, value)
    else:
        sizes: list[Value | int] = [g.length(value, axis) for axis in range(value.rank - 1)]
        if g.chance(0.5):
            sizes[g.rng.randrange(len(sizes))] = -1
        back = g.shape_of([*sizes, width])
    if g.chance(0.3):
        g.give(flat)
    g.give(g.op("Reshape", [flat, back], value.dims))


@piece("reshape")
def reshape(g: Sketch) -> None:
    """Copy some sizes by 0, let one be told by -1, split or join known ones."""
    value = g.pick(lambda v: v.dtype == FLOAT and v.rank >= 2 and isinstance(v.dims[-1], int) and v.dims[-1] % 2 == 0)
    if value is None:
        return
    width = value.dims[-1]
    assert isinstance(width, int)
    lead = value.dims[:-1]
    way = g.rng.randrange(3)
    if way == 0:
        made = g.op("Reshape", [value, g.ints(*[0] * len(lead), 2, width // 2)], (*lead, 2, width // 2))
    elif way == 1:
        made = g.op("Reshape", [value, g.ints(*[0] * len(lead), width // 2, -1)], (*lead, width // 2, 2))
    else:
        made = g.op(
            "Reshape", [value, g.ints(*[0] * (len(lead) - 1), -1, width // 2)], (*lead[:-1], g.fresh(), width // 2)
        )
    g.give(made)


@piece("flatten")
def flatten(g: Sketch) -> None:
    value = g.floats()
    if value is None:
        return
    axis = g.rng.randint(0, value.rank)
    lead, rest = value.dims[:axis], value.dims[axis:]
    g.give(g.op("Flatten", [value], (_product(g, lead), _product(g, rest)), axis=axis))


def _product(g: Sketch, dims: tuple[int | str, ...]) -> int | str:
    known = [dim for dim in dims if isinstance(dim, int)]
    if len(known) == len(dims):
        return int(np.prod(known)) if known else 1
    return dims[0] if len(dims) == 1 else g.fresh()


@piece("transpose", 1.5)
def transpose(g: Sketch) -> None:
    value = g.floats(2, 3, 4)
    if value is None:
        return
    order = list(range(value.rank))
    g.rng.shuffle(order)
    turned = g.op("Transpose", [value], tuple(value.dims[i] for i in order), perm=order)
    if g.chance(0.4):
        turned = g.same(g.rng.choice(("Relu", "Exp", "Neg")), turned)
    if g.chance(0.5):
        back = [order.index(i) for i in range(value.rank)]
        turned = g.op("Transpose", [turned], value.dims, perm=back)
    g.give(turned)


@piece("unsqueeze-squeeze")
def unsqueeze_squeeze(g: Sketch) -> None:
    value = g.floats(1, 2, 3)
    if value is None:
        return
    axis = g.rng.randint(0, value.rank)
    wide = g.op("Unsqueeze", [value, g.ints(axis)], (*value.dims[:axis], 1, *value.dims[axis:]))
    if g.chance(0.5):
        wide = g.same("Relu", wide)
    g.give(wide if g.chance(0.3) else g.op("Squeeze", [wide, g.ints(axis)], value.dims))


@piece("pad")
def pad(g: Sketch) -> None:
    value = g.floats(2, 3, 4)
    if value is None:
        return
    axis, before, after = g.rng.randrange(value.rank), g.rng.randint(0, 3), g.rng.randint(-2, 5)
    mode = g.rng.choice(("constant", "constant", "edge", "reflect"))
    if mode != "constant":
        after = abs(after)
    if mode == "reflect":  # no more than there is to look back on: the graph has a least size
        before = g.number(1, 40)
    pads = [0] * (2 * value.rank)
    pads[axis], pads[axis + value.rank] = before, after
    dims = tuple(g.fresh() if i == axis else dim for i, dim in enumerate(value.dims))
    padded = g.op("Pad", [value, g.ints(*pads)], dims, mode=mode)
    g.give(padded)
    if g.chance(0.5):
        mean_of_rows(g, padded, axis)


@piece("tile")
def tile(g: Sketch) -> None:
    value = g.floats(1, 2, 3)
    if value is None:
        return
    axis, times = g.rng.randrange(value.rank), g.rng.choice((1, 1, 2, 3))
    counts = [times if i == axis else 1 for i in range(value.rank)]
    dims = tuple((dim if times == 1 else g.fresh()) if i == axis else dim for i, dim in enumerate(value.dims))
    g.give(g.op("Tile", [value, g.ints(*counts)], dims))


@piece("expand", 1.5)
def expand(g: Sketch) -> None:
    """Spread a reduced row, or a constant, over the shape of a value."""
    value = g.floats(2, 3)
    if value is None:
        return
    axis = g.rng.randrange(value.rank)
    kept = g.reduced("ReduceMax" if g.chance(0.5) else "ReduceMean", value, axis, keep=True)
    if g.chance(0.5):
        sizes: list[Value | int] = [
            dim if isinstance(dim, int) else g.length(value, i) for i, dim in enumerate(value.dims)
        ]
        shape: Value = g.shape_of(sizes)
    else:
        shape = _shape_like(g, value)
    wide = g.op("Expand", [kept, shape], value.dims)
    g.give(g.same(g.rng.choice(("Sub", "Add", "Mul")), value, wide) if g.chance(0.7) else wide)


@piece("zeros-joined")
def zeros_joined(g: Sketch) -> None:
    """Rows of zeros, made for the batch, before or behind the rows: a class token, an empty state."""
    value = g.rows(3)
    if value is None:
        return
    count = g.rng.choice((0, 1, 1, 2, 5))
    shape = g.shape_of([g.length(value, 0), count, value.dims[-1]])  # type: ignore[list-item]  # rows have a known width
    zeros = g.op("ConstantOfShape", [shape], (value.dims[0], count, value.dims[-1]))
    parts = [zeros, value] if g.chance(0.5) else [value, zeros]
    g.give(g.op("Concat", parts, (value.dims[0], g.fresh() if count else value.dims[1], value.dims[-1]), axis=1))


@piece("resize")
def resize(g: Sketch) -> None:
    """Twice the last axis but one, by a scale or to a computed size."""
    value = g.rows(3)
    if value is None:
        return
    turned = g.op("Transpose", [value], (value.dims[0], value.dims[2], value.dims[1]), perm=[0, 2, 1])
    mode = g.rng.choice(("nearest", "linear"))
    dims = (value.dims[0], value.dims[2], g.fresh())
    way = "asymmetric" if mode == "nearest" else g.rng.choice(("half_pixel", "align_corners", "asymmetric"))
    common: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": way}
    if mode == "nearest":
        common["nearest_mode"] = "floor"
    if g.chance(0.5):
        scales = g.const(np.array([1, 1, g.rng.choice((2.0, 0.5, 3.0))], np.float32))
        made = g.op("Resize", [turned, "", scales], dims, **common)
    else:
        target = g.same("Add", g.length(value, 1), g.ints(g.number(2, 200)))
        sizes = g.shape_of([g.length(value, 0), value.dims[2], target])  # type: ignore[list-item]  # same
        made = g.op("Resize", [turned, "", "", sizes], dims, **common)
    g.give(made)


@piece("casts", 1.5)
def casts(g: Sketch) -> None:
    """There and back: to half precision, to double, to whole numbers, to bool."""
    value = g.floats()
    if value is None:
        return
    there = g.rng.choice((TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, INT64, BOOL, FLOAT))
    other = g.cast(value, there)
    if there == TensorProto.DOUBLE and g.chance(0.5):
        other = g.same("Exp", g.same("Min", other, g.const(np.float64(3.0))))
    g.give(g.cast(other, FLOAT))


@piece("mask-rows", 1.5)
def mask_rows(g: Sketch) -> None:
    """Rows times a mask, and their sum divided by its sum: pooling."""
    value = g.rows(3)
    if value is None:
        return
    mask = g.pick(lambda v: v.rank == 2 and v.dims == value.dims[:2] and v in g.inputs and "mask" in v.name)
    if mask is None:
        return
    real = g.cast(mask, FLOAT) if mask.dtype != FLOAT else mask
    wide = g.op("Unsqueeze", [real, g.ints(2)], (*value.dims[:2], 1))
    if g.chance(0.5):
        wide = g.op("Expand", [wide, _shape_like(g, value)], value.dims)
    kept = g.op("Mul", [value, wide], value.dims)
    total, count = g.reduced("ReduceSum", kept, 1, keep=False), g.reduced("ReduceSum", wide, 1, keep=False)
    if g.chance(0.7):
        count = g.same("Clip", count, g.const(np.float32(1e-9)))
    g.give(g.op("Div", [total, count], (value.dims[0], value.dims[2])))


@piece("nonzero", 1.0)
def nonzero(g: Sketch) -> None:
    """Where a value is positive: as many rows as the data says."""
    value = g.floats(1, 2)
    if value is None:
        return
    positive = g.op("Greater", [value, g.const(np.float32(g.rng.choice((0.0, 0.5))))], value.dims, BOOL)
    places = g.op("NonZero", [positive], (value.rank, g.fresh()), INT64)
    if g.chance(0.5):
        g.give(g.cast(places, FLOAT))
    rows = g.op("Transpose", [places], (places.dims[1], value.rank), INT64, perm=[1, 0])
    found = g.op("GatherND", [value, rows], (places.dims[1],))
    g.give(found)
    if g.chance(0.5):
        g.give(g.cast(g.length(found, 0), FLOAT))


@piece("compress", 0.7)
def compress(g: Sketch) -> None:
    value = g.floats(2, 3)
    if value is None:
        return
    axis = g.rng.randrange(value.rank)
    score = value
    for other in reversed([i for i in range(value.rank) if i != axis]):
        score = g.reduced("ReduceMax", score, other, keep=False)
    kept = g.op("Greater", [score, g.const(np.float32(0.3))], score.dims, BOOL)
    dims = tuple(g.fresh() if i == axis else dim for i, dim in enumerate(value.dims))
    left = g.op("Compress", [value, kept], dims, axis=axis)
    g.give(left)
    if g.chance(0.5):
        mean_of_rows(g, left, axis)


@piece("unique", 0.7)
def unique(g: Sketch) -> None:
    value = g.floats(1, 2)
    if value is None:
        return
    whole = g.cast(g.same("Round", value), INT64)
    name, inverse = g.name("unique"), g.name("inverse")
    g.node("Unique", [whole], [name, "", inverse], sorted=1)
    found = Value(name, INT64, (g.fresh(),))
    g.give(g.cast(found, FLOAT))
    g.give(g.cast(Value(inverse, INT64, (value.dims[0] if value.rank == 1 else g.fresh(),)), FLOAT))


@piece("top-k", 0.7)
def top_k(g: Sketch) -> None:
    """The k largest of an axis, no more than there are."""
    value = g.floats()
    if value is None:
        return
    axis = g.rng.randrange(value.rank)
    count = g.same("Min", g.length(value, axis), g.ints(g.number(1, 300)))
    names = [g.name("top"), g.name("places")]
    g.node("TopK", [value, count], names, axis=axis)
    dims = tuple(g.fresh() if i == axis else dim for i, dim in enumerate(value.dims))
    g.give(Value(names[0], FLOAT, dims))


@piece("sums-along")
def sums_along(g: Sketch) -> None:
    value = g.floats()
    if value is None:
        return
    axis = g.rng.randrange(value.rank)
    g.give(g.op("CumSum", [value, g.const(np.int64(axis))], value.dims, reverse=g.rng.randrange(2)))


@piece("reduce", 1.5)
def reduce(g: Sketch) -> None:
    value = g.floats(2, 3, 4)
    if value is None:
        return
    axis, keep = g.rng.randrange(value.rank), g.chance(0.5)
    kind = g.rng.choice(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSum"))
    made = g.reduced(kind, value, axis - value.rank if g.chance(0.5) else axis, keep=keep)
    g.give(g.op("Sub", [value, made], value.dims) if keep and g.chance(0.6) else made)


@piece("first-row", 1.0)
def first_row(g: Sketch) -> None:
    """The first or the last row of each: a class token, the newest word."""
    value = g.rows(3)
    if value is None:
        return
    g.give(g.op("Gather", [value, g.const(np.int64(g.rng.choice((0, -1))))], (value.dims[0], value.dims[2]), axis=1))
