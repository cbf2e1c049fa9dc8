"""Pieces that real networks are made of, in the spellings of several exporters, and near misses of each."""

from __future__ import annotations

import math

import numpy as np

from tests.property.pieces import piece
from tests.property.sketch import BOOL, FLOAT, INT64, Sketch, Value

MASKED = (float(np.finfo(np.float32).min), -math.inf, -10000.0, -1e9, -1e4, -3.0)


def wide(value: Value) -> int | None:
    """Return the last dimension when it is known."""
    last = value.dims[-1] if value.dims else None
    return last if isinstance(last, int) else None


def known_last(g: Sketch, *ranks: int) -> Value | None:
    """Return a float32 tensor whose last dimension is known."""
    return g.pick(lambda v: v.dtype == FLOAT and v.rank in (ranks or (1, 2, 3, 4)) and (wide(v) or 0) > 1)


def project(g: Sketch, value: Value, out: int) -> Value:
    """Multiply by weights, with or without a bias, the bias in one of its shapes and on either side."""
    width = wide(value)
    assert width is not None
    if value.rank == 2 and g.chance(0.4):
        turned = g.rng.randrange(2)
        weight = g.weights(out, width) if turned else g.weights(width, out)
        bias = [g.weights(*g.rng.choice(((out,), (1, out), (1,))), scale=0.3)] if g.chance(0.7) else []
        return g.op("Gemm", [value, weight, *bias], (value.dims[0], out), transB=turned)
    weight = g.weights(width, out)
    if g.chance(0.2):
        weight = g.op("Transpose", [g.weights(out, width)], (width, out), perm=[1, 0]).name
    elif g.chance(0.08) and value.rank >= 3:
        weight = g.weights(1, width, out)
    made = g.op("MatMul", [value, weight], (*value.dims[:-1], out))
    if g.chance(0.7):
        shape = g.rng.choice(((out,), (out,), (out,), (1, out), (1, 1, out), ()))
        bias_name = g.weights(*shape, scale=0.3)
        dims = made.dims if len(shape) <= made.rank else (1,) * (len(shape) - made.rank) + made.dims
        made = g.op("Add", [made, bias_name] if g.chance(0.6) else [bias_name, made], dims)
    return made


@piece("linear", 4.0)
def linear(g: Sketch) -> None:
    value = known_last(g)
    width = wide(value) if value else None
    if value is None or width is None:
        return
    made = project(g, value, width if g.chance(0.6) else g.rng.choice((3, 8, 16, 33)))
    if g.chance(0.3):
        g.give(made)  # seen from outside, too
    if g.chance(0.3) and made.dims == value.dims:
        made = g.same("Add", made, value)
    g.give(made)


def gelu_of(g: Sketch, x: Value, *, miss: float = 0.0) -> Value:
    """Spell a GELU; with a miss, with one constant a little off."""
    half, one, root = 0.5 + miss * g.rng.randrange(2), 1.0, math.sqrt(2) + miss
    way = g.rng.randrange(4)
    if way == 3:
        return g.same("Mul", x, g.same("Sigmoid", g.same("Mul", x, g.scalar(1.702 + miss))))
    if way == 2:
        cube = g.same("Pow", x, g.scalar(3.0)) if g.chance(0.5) else g.same("Mul", g.same("Mul", x, x), x)
        inner = g.same("Add", x, g.same("Mul", cube, g.scalar(0.044715)))
        gate = g.same("Tanh", g.same("Mul", inner, g.scalar(math.sqrt(2 / math.pi) + miss)))
    elif g.chance(0.5):
        gate = g.same("Erf", g.same("Div", x, g.scalar(root)))
    else:
        gate = g.same("Erf", g.same("Mul", x, g.scalar(1 / root)))
    gate = g.same("Add", gate, g.scalar(one))
    place = g.rng.randrange(3)
    if place == 0:
        return g.same("Mul", g.same("Mul", x, gate), g.scalar(half))
    if place == 1:
        return g.same("Mul", g.same("Mul", x, g.scalar(half)), gate)
    return g.same("Mul", x, g.same("Mul", gate, g.scalar(half)))


@piece("gelu", 3.0)
def gelu(g: Sketch) -> None:
    value = g.floats()
    if value is None:
        return
    before = len(g.nodes)
    # a constant of a higher rank raises the rank of what it meets: no scalar of a sketch has more than three axes
    x = value if value.rank == 3 else g.same("Identity", value)
    made = gelu_of(g, x, miss=g.rng.choice((0.0, 0.0, 0.0, 1e-3, 0.1)))
    if value.rank < 3:
        # sizes are told again from what a constant of three axes makes of fewer
        made = g.op("Reshape", [made, g.op("Shape", [value], (value.rank,), INT64)], value.dims)
    assert len(g.nodes) > before
    g.give(made)


@piece("layer-norm", 3.0)
def layer_norm(g: Sketch) -> None:
    value = known_last(g, 2, 3, 4)
    width = wide(value) if value else None
    if value is None or width is None:
        return
    gamma, beta = g.weights(width, scale=0.2, shift=1.0), g.weights(width, scale=0.2)
    eps = g.rng.choice((1e-5, 1e-12, 1e-6, 1e-3, 0.5))
    if g.chance(0.25):
        g.give(g.op("LayerNormalization", [value, gamma, beta], value.dims, axis=-1, epsilon=eps))
        return
    axis = -1 if g.chance(0.85) else value.rank - 2
    centred = g.chance(0.75)  # else a root mean square
    middle = g.same("Sub", value, g.reduced("ReduceMean", value, axis, keep=True)) if centred else value
    square = g.same("Mul", middle, middle) if g.chance(0.3) else g.same("Pow", middle, g.scalar(2.0, rank=0))
    variance = g.reduced("ReduceMean", square, axis, keep=True)
    if g.chance(0.15):  # a near miss: eps outside of the root
        deviation = g.same("Add", g.same("Sqrt", variance), g.scalar(eps, rank=0))
    else:
        deviation = g.same("Sqrt", g.same("Add", variance, g.scalar(eps, rank=0)))
    if g.chance(0.3):
        made = g.op("Mul", [middle, g.same("Reciprocal", deviation)], value.dims)
    else:
        made = g.op("Div", [middle, deviation], value.dims)
    if g.chance(0.85):
        made = g.same("Mul", made, gamma) if g.chance(0.5) else g.op("Mul", [gamma, made], value.dims)
        if g.chance(0.85):
            made = g.same("Add", made, beta)
    g.give(made)


@piece("embedding", 1.5)
def embedding(g: Sketch) -> None:
    ids = g.pick(lambda v: v.dtype == INT64 and v in g.inputs and v.rank in (1, 2) and "ids" in v.name)
    if ids is None:
        return
    width = g.rng.choice((4, 8, 16))
    g.give(g.op("Gather", [g.weights(32, width, scale=1.0), ids], (*ids.dims, width), axis=0))


@piece("activation", 2.0)
def activation(g: Sketch) -> None:
    value = g.floats()
    if value is None:
        return
    way = g.rng.randrange(5)
    if way == 0:  # SiLU
        made = g.same("Mul", value, g.same("Sigmoid", value))
    elif way == 1:  # hard swish, spelled
        gate = g.same(
            "Clip", g.same("Add", value, g.scalar(3.0, rank=0)), g.const(np.float32(0)), g.const(np.float32(6))
        )
        made = g.same("Mul", value, g.same("Div", gate, g.scalar(6.0, rank=0)))
    elif way == 2:
        made = g.same("Clip", value, g.const(np.float32(-1)), g.const(np.float32(1)))
    else:
        made = g.same(g.rng.choice(("Relu", "Tanh", "Sigmoid", "Softplus", "LeakyRelu", "Elu", "Abs", "Neg")), value)
    g.give(made)


@piece("arithmetic", 2.0)
def arithmetic(g: Sketch) -> None:
    """Two values of the same dimensions, or one and a constant."""
    value = g.floats()
    if value is None:
        return
    kind = g.rng.choice(("Add", "Sub", "Mul", "Max", "Min"))
    other = g.pick(lambda v: v.dtype == FLOAT and v.dims == value.dims and v != value)
    if other is not None and g.chance(0.7):
        g.give(g.same(kind, value, other))
        return
    neutral = 0.0 if kind in ("Add", "Sub") else 1.0
    number = neutral if g.chance(0.4) else g.rng.choice((0.5, -2.0, 3.0))
    rank = g.rng.randint(0, value.rank)
    width = wide(value)
    shape = (1,) * rank if width is None or g.chance(0.5) or not rank else (*(1,) * (rank - 1), width)
    g.give(g.same(kind, value, g.const(np.full(shape, number, np.float32))))


@piece("softmax")
def softmax(g: Sketch) -> None:
    value = g.floats()
    if value is None:
        return
    g.give(g.same(g.rng.choice(("Softmax", "LogSoftmax")), value, axis=g.rng.randrange(value.rank)))


def channelled(g: Sketch, *, rows: float) -> Value | None:
    """Pick an image, or with this chance rows, turned so that their channels lie in front; None without rows."""
    value = g.pick(lambda v: v.dtype == FLOAT and v.rank == 4 and isinstance(v.dims[1], int))
    if value is not None and not g.chance(rows):
        return value
    taken = g.rows(3)
    if taken is None:
        return None
    return g.op("Transpose", [taken], (taken.dims[0], taken.dims[2], taken.dims[1]), perm=[0, 2, 1])


@piece("convolution", 1.5)
def convolution(g: Sketch) -> None:
    """Over the rows of [batch, rows, width], or over an image; then an affine map, an activation, a pool."""
    value = channelled(g, rows=0.4)
    if value is None:
        return
    channels, spatial = value.dims[1], value.rank - 2
    assert isinstance(channels, int)
    kernel, stride, out = g.rng.choice((1, 3, 3, 5)), g.rng.choice((1, 1, 2)), g.rng.choice((channels, 4, 8))
    padding = kernel // 2 if g.chance(0.7) else 0
    same = stride == 1 and padding == kernel // 2
    group = channels if out == channels and g.chance(0.3) else 1
    weight = g.weights(out, channels // group, *[kernel] * spatial, scale=1 / math.sqrt(channels * kernel))
    bias = [g.weights(out, scale=0.3)] if g.chance(0.5) else []
    dims = (value.dims[0], out, *(value.dims[2:] if same else [g.fresh() for _ in range(spatial)]))
    made = g.op("Conv", [value, weight, *bias], dims, kernel_shape=[kernel] * spatial, strides=[stride] * spatial,
                pads=[padding] * (2 * spatial), group=group)  # fmt: skip
    if g.chance(0.5):
        made = _affine(g, made, out, spatial)
    if g.chance(0.5):
        made = g.same(g.rng.choice(("Relu", "HardSwish", "Sigmoid")) if g.opset >= 14 else "Relu", made)
        if g.chance(0.4):
            made = _affine(g, made, out, spatial)
    g.give(made)
    if g.chance(0.4):
        g.give(g.op("GlobalAveragePool", [made], (value.dims[0], out, *[1] * spatial)))


def _affine(g: Sketch, value: Value, channels: int, spatial: int) -> Value:
    if g.chance(0.5):
        facts = [
            g.weights(channels, scale=0.2, shift=1.0),
            g.weights(channels, scale=0.2),
            g.weights(channels, scale=0.2),
        ]
        return g.same("BatchNormalization", value, *facts, g.const(np.full(channels, 0.7, np.float32)))
    shape = (channels, *[1] * spatial) if g.chance(0.7) else (1, channels, *[1] * spatial)
    scaled = g.same("Mul", value, g.weights(*shape, scale=0.2, shift=1.0))
    return g.same("Add", scaled, g.weights(*shape, scale=0.3))


@piece("attention", 4.0)
def attention(g: Sketch) -> None:
    """Queries against keys of the same rows, under a mask of any kind, heads split and joined in several ways."""
    value = g.rows(3)
    width = wide(value) if value else None
    if value is None or width is None or width % 2:
        return
    g.square = True
    heads = g.rng.choice([count for count in (1, 2, 4) if width % count == 0])
    head = width // heads
    batch, rows = value.dims[0], value.dims[1]
    split, joined = (batch, heads, rows, head), (batch, heads, head, rows)

    def projected(order: list[int], dims: tuple[int | str, ...]) -> Value:
        flat = project(g, value, width)
        if flat.rank != 3:
            flat = g.op("MatMul", [value, g.weights(width, width)], value.dims)
        shape = g.ints(0, 0, heads, head) if g.chance(0.7) else g.shape_of([g.length(value, 0), -1, heads, head])
        parts = g.op("Reshape", [flat, shape], (batch, rows, heads, head))
        return g.op("Transpose", [parts], dims, perm=order)

    query, keys, content = (
        projected([0, 2, 1, 3], split),
        projected([0, 2, 3, 1], joined),
        projected([0, 2, 1, 3], split),
    )
    factor = 1 / math.sqrt(head) if g.chance(0.8) else g.rng.choice((1.0, 0.3))
    place = g.rng.randrange(3)
    if place == 0:
        query = g.same("Mul", query, g.scalar(factor, rank=g.rng.randrange(2)))
    elif place == 1:
        keys = g.same("Mul", keys, g.scalar(factor, rank=g.rng.randrange(2)))
    scores = g.op("MatMul", [query, keys], (batch, heads, rows, rows))
    if place == 2:
        scores = g.same("Div", scores, g.scalar(1 / factor, rank=g.rng.randrange(2)))
    scores = masked(g, scores, value)
    chances = g.same("Softmax", scores, axis=-1 if g.chance(0.9) else 2)
    if g.chance(0.1):
        g.give(chances)
    mixed = g.op("MatMul", [chances, content], split)
    turned = g.op("Transpose", [mixed], (batch, rows, heads, head), perm=[0, 2, 1, 3])
    if g.chance(0.5):
        shape: Value | str = g.ints(0, 0, width)
    else:
        shape = g.shape_of([g.length(value, 0), g.length(value, 1), width])
    made = g.op("Reshape", [turned, shape], value.dims)
    made = g.op("MatMul", [made, g.weights(width, width)], value.dims) if g.chance(0.7) else made
    g.give(g.same("Add", made, value) if g.chance(0.5) else made)


def masked(g: Sketch, scores: Value, value: Value) -> Value:
    """Hide keys: by the mask that is an input, by order, by distance, by both, or not at all."""
    filler = g.rng.choice(MASKED)
    mask = g.pick(lambda v: v.rank == 2 and v.dims == value.dims[:2] and v in g.inputs and "mask" in v.name)
    if mask is not None and g.chance(0.75):
        scores = _by_input(g, scores, mask, filler)
    if g.chance(0.35):
        scores = _by_order(g, scores, value, filler)
    return scores


def _by_input(g: Sketch, scores: Value, mask: Value, filler: float) -> Value:
    rows = mask.dims[1]
    wide_mask = g.op("Unsqueeze", [mask, g.ints(1, 2)], (mask.dims[0], 1, 1, rows), mask.dtype)
    way = g.rng.randrange(4)
    if way in (0, 1):  # (1 − mask) · filler, added
        real = g.cast(wide_mask, FLOAT) if mask.dtype != FLOAT else wide_mask
        hidden = g.op("Sub", [g.scalar(1.0, rank=0), real], real.dims)
        if math.isinf(filler):
            filler = -10000.0  # 0 · −inf is not a number
        if way == 1:
            away = g.cast(hidden, BOOL)
            bias = g.op("Where", [away, g.scalar(filler, rank=0), hidden], hidden.dims)
        else:
            bias = g.same("Mul", hidden, g.scalar(filler, rank=0))
        return g.same("Add", scores, bias)
    seen = g.cast(wide_mask, BOOL) if mask.dtype != BOOL else wide_mask
    if way == 2:
        return g.op("Where", [seen, scores, g.scalar(filler, rank=0)], scores.dims)
    away = g.op("Not", [seen], seen.dims, BOOL)
    return g.op("Where", [away, g.scalar(filler, rank=0), scores], scores.dims)


def _by_order(g: Sketch, scores: Value, value: Value, filler: float) -> Value:
    """Causal, or causal within a window."""
    rows = value.dims[1]
    size = g.op("Squeeze", [g.length(value, 1), g.ints(0)], (), INT64)
    places = g.op("Range", [g.const(np.int64(0)), size, g.const(np.int64(1))], (rows,), INT64)
    column, row = (g.op("Unsqueeze", [places, g.ints(axis)], dims, INT64)
                   for axis, dims in ((1, (rows, 1)), (0, (1, rows))))  # fmt: skip
    seen = g.op("LessOrEqual", [row, column], (rows, rows), BOOL)
    if g.chance(0.4):
        near = g.op("Less", [g.op("Sub", [column, row], (rows, rows), INT64), g.const(np.int64(g.number(1, 300)))],
                    (rows, rows), BOOL)  # fmt: skip
        seen = g.same("And", seen, near)
    return g.op("Where", [seen, scores, g.scalar(filler, rank=0)], scores.dims)


@piece("stored-small", 0.8)
def stored_small(g: Sketch) -> None:
    """Weights kept as int8, widened when they are used."""
    value = known_last(g, 2, 3)
    width = wide(value) if value else None
    if value is None or width is None:
        return
    drawn = np.random.default_rng(g.rng.randrange(2**31)).integers(-127, 128, (width, 8)).astype(np.int8)
    stored = Value(g.const(drawn), 3, (width, 8))
    real = g.same("Mul", g.cast(stored, FLOAT), g.const(np.float32(0.01)))
    g.give(g.op("MatMul", [value, real], (*value.dims[:-1], 8)))
