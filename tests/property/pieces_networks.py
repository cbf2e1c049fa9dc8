"""Pieces of whole networks: norms over groups, attention of every make, masks that come from anywhere, residuals."""

from __future__ import annotations

import math

import numpy as np

from tests.property.pieces import piece
from tests.property.pieces_layers import MASKED, channelled, gelu_of, known_last, project, wide
from tests.property.sketch import BOOL, FLOAT, INT64, Sketch, Value

SOFT = (-3.0, -50.0, -10000.0)
EPSILONS = (1e-3, 1e-5, 1e-6, 1e-12)
GROUP_NORM_SINCE, GELU_SINCE = 21, 20  # opsets


@piece("group-norm", 1.5)
def group_norm(g: Sketch) -> None:
    """Channels in groups: the operator, InstanceNormalization between two Reshapes, or all of it spelled out."""
    value = channelled(g, rows=0.5)
    if value is None:
        return
    channels = value.dims[1]
    assert isinstance(channels, int)
    groups = g.rng.choice([count for count in (1, 2, 3, 4, channels) if channels % count == 0])
    epsilon = g.rng.choice(EPSILONS)
    if g.opset >= GROUP_NORM_SINCE and g.chance(0.4):
        facts = [g.weights(channels, scale=0.2, shift=1.0), g.weights(channels, scale=0.2)]
        g.give(g.op("GroupNormalization", [value, *facts], value.dims, num_groups=groups, epsilon=epsilon))
        return
    in_one = g.chance(0.5)
    if in_one:  # of no entries the kernel ends the process
        spatial = value.rank - 2
        pads = g.ints(0, 0, *[0] * spatial, 0, 0, *[1] * spatial)
        value = g.op("Pad", [value, pads], (*value.dims[:2], *[g.fresh() for _ in range(spatial)]))
    parts = g.op("Reshape", [value, g.ints(0, groups, -1)], (value.dims[0], groups, g.fresh()))
    if in_one:
        plain = [g.const(np.full(groups, number, np.float32)) for number in (1, 0)]
        normal = g.same("InstanceNormalization", parts, *plain, epsilon=epsilon)
    else:
        middle = g.same("Sub", parts, g.reduced("ReduceMean", parts, 2, keep=True))
        square = g.same("Mul", middle, middle) if g.chance(0.5) else g.same("Pow", middle, g.scalar(2.0, rank=0))
        variance = g.reduced("ReduceMean", square, 2, keep=True)
        deviation = g.same("Sqrt", g.same("Add", variance, g.scalar(epsilon, rank=0)))
        normal = g.same("Div", middle, deviation)
    whole = g.op("Reshape", [normal, g.op("Shape", [value], (value.rank,), INT64)], value.dims)
    column = (channels, *[1] * (value.rank - 2))
    scaled = g.same("Mul", whole, g.weights(*column, scale=0.2, shift=1.0))
    g.give(g.same("Add", scaled, g.weights(*column, scale=0.3)) if g.chance(0.8) else scaled)


@piece("root-mean-square", 1.5)
def root_mean_square(g: Sketch) -> None:
    """RMS norms as Llama's exporters spell them, a vector of length one, and what stands between."""
    value = known_last(g, 2, 3, 4)
    width = wide(value) if value else None
    if value is None or width is None:
        return
    square = g.same("Mul", value, value) if g.chance(0.5) else g.same("Pow", value, g.scalar(2.0, rank=0))
    way = g.rng.randrange(4)
    if way == 3:  # torch.nn.functional.normalize
        length = g.reduced("ReduceL2", value, value.rank - 1, keep=True)
        g.give(g.op("Div", [value, g.same("Clip", length, g.const(np.float32(1e-12)))], value.dims))
        return
    mean = g.same(
        "Add", g.reduced("ReduceMean", square, value.rank - 1, keep=True), g.scalar(g.rng.choice(EPSILONS), rank=0)
    )
    if way == 0:
        made = g.op("Mul", [value, g.same("Pow", mean, g.scalar(-0.5, rank=0))], value.dims)
    elif way == 1:
        made = g.op("Mul", [value, g.same("Reciprocal", g.same("Sqrt", mean))], value.dims)
    else:
        made = g.op("Div", [value, g.same("Sqrt", mean)], value.dims)
    gamma = g.weights(width, scale=0.2, shift=1.0)
    g.give(g.same("Mul", made, gamma) if g.chance(0.6) else g.op("Mul", [gamma, made], value.dims))


@piece("shared-residual", 2.0)
def shared_residual(g: Sketch) -> None:
    """One value that several branches read and that is added to them; now and then it is seen from outside, too."""
    value = known_last(g, 2, 3)
    width = wide(value) if value else None
    if value is None or width is None:
        return
    total = value
    for _ in range(g.rng.randint(1, 3)):
        part = g.op("MatMul", [total if g.chance(0.5) else value, g.weights(width, width)], value.dims)
        if g.chance(0.5):
            part = g.same("Add", part, g.weights(width, scale=0.2))
        if g.chance(0.3) and value.rank == 3:
            part = gelu_of(g, part)
        elif g.chance(0.3) and g.opset >= GELU_SINCE:
            part = g.same("Gelu", part, approximate=g.rng.choice(("none", "tanh")))
        total = g.op("Add", [part, total] if g.chance(0.5) else [total, part], value.dims)
        if g.chance(0.3):
            g.give(part)
    g.give(total)


@piece("packed-attention", 3.0)
def packed_attention(g: Sketch) -> None:
    """Queries, keys and values of one product or of three, under a mask of any origin."""
    value = g.rows(3)
    width = wide(value) if value else None
    if value is None or width is None or width % 2:
        return
    g.square = True
    heads = g.rng.choice([count for count in (1, 2, 4) if width % count == 0])
    head, batch, rows = width // heads, value.dims[0], value.dims[1]
    if g.chance(0.5):
        packed = project(g, value, 3 * width)
        if packed.rank != 3:
            return
        names = [g.name("part") for _ in range(3)]
        g.node("Split", [packed, g.ints(width, width, width)], names, axis=g.rng.choice((-1, 2)))
        sides = [Value(name, FLOAT, value.dims) for name in names]
    else:
        sides = [g.op("MatMul", [value, g.weights(width, width)], value.dims) for _ in range(3)]
    split = (batch, heads, rows, head)
    parts = []
    for side in sides:
        shape = (
            g.ints(0, 0, heads, head)
            if g.chance(0.5)
            else g.shape_of([g.length(value, 0), g.length(value, 1), heads, head])
        )
        cut = g.op("Reshape", [side, shape], (batch, rows, heads, head))
        parts.append(g.op("Transpose", [cut], split, perm=[0, 2, 1, 3]))
    query, keys, content = parts
    turned = g.op("Transpose", [keys], (batch, heads, head, rows), perm=[0, 1, 3, 2])
    scores = g.op("MatMul", [query, turned], (batch, heads, rows, rows))
    scores = g.same("Mul", scores, g.scalar(g.rng.choice((1 / math.sqrt(head), 1.0, 4.0)), rank=0))
    for _ in range(g.rng.choice((0, 1, 1, 2))):
        scores = hidden_by(g, scores, value)
    chances = g.same("Softmax", scores, axis=-1)
    if g.chance(0.15):  # the guard of exporters for rows of -inf
        none = g.op("IsNaN", [chances], chances.dims, BOOL)
        chances = g.op("Where", [none, g.scalar(0.0, rank=0), chances], chances.dims)
    mixed = g.op("MatMul", [chances, content], split)
    back = g.op("Transpose", [mixed], (batch, rows, heads, head), perm=[0, 2, 1, 3])
    made = g.op("Reshape", [back, g.shape_of([g.length(value, 0), g.length(value, 1), width])], value.dims)
    g.give(g.same("Add", made, value) if g.chance(0.5) else made)


def hidden_by(g: Sketch, scores: Value, value: Value) -> Value:
    """Hide keys in one of the ways of exporters, by an input, by what the graph computes of rows, or softly."""
    mask = _any_mask(g, value)
    for _ in range(g.rng.randint(0, 2)):  # there and back, or turned over
        mask = _respelled(g, mask)
    dims = (mask.dims[0], 1, 1, mask.dims[1])
    broad = g.op("Unsqueeze", [mask, g.ints(1, 2)], dims, mask.dtype)
    if g.chance(0.3):  # a row for every query
        shape = g.shape_of([g.length(value, 0), 1, g.length(value, 1), g.length(value, 1)])
        broad = g.op("Expand", [broad, shape], (*dims[:2], dims[3], dims[3]), mask.dtype)
    computed = mask.dtype == FLOAT and mask not in g.inputs
    # times finfo.min, a rounding error of a sigmoid would decide what is seen
    filler = g.rng.choice(SOFT if computed else [number for number in MASKED if not math.isinf(number)])
    if broad.dtype == BOOL:
        number = g.scalar(g.rng.choice(MASKED), rank=0)
        way = g.rng.randrange(3)
        if way == 0:
            return g.op("Where", [broad, scores, number], scores.dims)
        if way == 1:
            return g.op("Where", [g.same("Not", broad), number, scores], scores.dims)
        bias = g.op("Where", [broad, g.scalar(0.0, rank=0), number], broad.dims)
        return g.same("Add", scores, bias)
    real = broad if broad.dtype == FLOAT else g.cast(broad, FLOAT)
    if g.chance(0.5):
        away = g.op("Sub", [g.scalar(1.0, rank=0), real], real.dims)
        return g.same("Add", scores, g.same("Mul", away, g.scalar(filler, rank=0)))
    away = g.op("Sub", [real, g.scalar(1.0, rank=0)], real.dims)
    return g.same("Add", scores, g.same("Mul", away, g.scalar(-filler, rank=0)))


def _any_mask(g: Sketch, value: Value) -> Value:
    """Return a mask [batch, rows] of flags, whole numbers or floats: an input, or what the graph makes of rows."""
    given = g.pick(lambda v: v.rank == 2 and v.dims == value.dims[:2] and v in g.inputs and "mask" in v.name)
    if given is not None and g.chance(0.7):
        return given
    total = g.reduced("ReduceMean", value, 2, keep=False)
    way = g.rng.randrange(3)
    if way == 0:
        return g.same("Sigmoid", total)
    if way == 1:
        return g.op("Greater", [total, g.scalar(0.0, rank=0)], total.dims, BOOL)
    return g.cast(g.same("Round", total), INT64)


def _respelled(g: Sketch, mask: Value) -> Value:
    """Write a mask otherwise: of another type, or the other way round; what it means may change."""
    if mask.dtype == BOOL:
        return g.rng.choice((lambda: g.cast(mask, FLOAT), lambda: g.cast(mask, INT64), lambda: g.same("Not", mask)))()
    kind = np.float32 if mask.dtype == FLOAT else np.int64
    zero, one = g.const(kind(0)), g.const(kind(1))
    way = g.rng.randrange(5)
    if way == 0:
        return g.cast(mask, BOOL)
    if way == 1:
        return g.op("Equal", [mask, g.rng.choice((zero, one))], mask.dims, BOOL)
    if way == 2:
        return g.op("Greater", [mask, zero], mask.dims, BOOL)
    if way == 3:
        return g.op("Sub", [one, mask], mask.dims, mask.dtype)
    return g.cast(mask, INT64 if mask.dtype == FLOAT else FLOAT)
