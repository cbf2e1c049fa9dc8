"""Draw whole graphs from a seed: inputs with axes of every name, some pieces, and outputs.

A graph may be one that ONNX Runtime does not take, or that runs at few sizes; `runs_at` of `judge.py` tells.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from tests.property import pieces_layers, pieces_networks, pieces_shapes, pieces_sizes
from tests.property.pieces import PIECES, Piece
from tests.property.sketch import BOOL, FLOAT, INT64, Dim, Sketch, Value

# pieces register themselves when their module is imported
assert pieces_layers and pieces_networks and pieces_shapes and pieces_sizes

AXES = (
    ("batch", "sequence"),
    ("batch", "sequence"),
    ("batch_size", "sequence_length"),
    ("batch", "frames"),
    ("batch", "seq_len"),
    ("N", "T"),
    ("DynamicDimension.0", "DynamicDimension.1"),
    ("s6", "s77"),
    ("unk__12", "unk__13"),
    ("?in1", "?in2"),
    ("batch", "image_width"),
    ("sequence", "batch"),
    ("batch", "past_sequence"),
    ("a b", "x*2"),
)
WIDTHS = (4, 4, 6, 8, 8, 16)
MOST_PIECES = 7


@dataclass(frozen=True)
class Drawn:
    """A graph with what is known of how it was made.

    Attributes:
        seed: draws the same graph again.
        model: the graph.
        pieces: names of its pieces, in order.
        square: it makes tensors with an axis squared.
    """

    seed: int
    model: onnx.ModelProto
    pieces: tuple[str, ...]
    square: bool


def draw(seed: int, *, most: int = MOST_PIECES) -> Drawn:
    """Draw a graph.

    Args:
        seed: decides everything.
        most: pieces, at most.
    """
    rng = random.Random(seed)  # noqa: S311  graphs, not secrets
    sketch = Sketch(rng, opset=rng.choice((13, 15, 17, 17, 17, 18, 20, 23)))
    _draw_inputs(sketch)
    wanted = rng.randint(1, most)
    tries = 0
    while len(sketch.pieces) < wanted and tries < 4 * most:
        tries += 1
        _add(sketch, _drawn_piece(sketch))
    outputs = _outputs(sketch)
    return Drawn(seed, sketch.model(outputs), tuple(sketch.pieces), sketch.square)


def _drawn_piece(sketch: Sketch) -> Piece:
    fitting = [piece for piece in PIECES.values() if piece.name not in _too_new(sketch.opset)]
    return sketch.rng.choices(fitting, [piece.weight for piece in fitting])[0]


def _too_new(opset: int) -> tuple[str, ...]:
    """Return pieces whose spelling needs a later version: Shape with start, LayerNormalization, LessOrEqual of ints."""
    return ("layer-norm",) if opset < 17 else ()


def _add(sketch: Sketch, piece: Piece) -> None:
    before = len(sketch.nodes)
    piece.build(sketch)
    if len(sketch.nodes) > before:
        sketch.pieces.append(piece.name)


def _draw_inputs(g: Sketch) -> None:
    """Give the graph one main input, and beside it ids, masks, a second tensor, or a number."""
    first, second = g.rng.choice(AXES)
    width = g.rng.choice(WIDTHS)
    way = g.rng.random()
    if way < 0.12:
        dims: tuple[Dim, ...] = g.rng.choice(((second,), (second, width), (first, second)))
    elif way < 0.24:
        dims = (first, 3, second, g.rng.choice((second, "width", 8)))
        if dims[2] == dims[3]:
            dims = (first, 3, second, "width")
    elif way < 0.30:
        dims = (g.rng.choice((1, 2)), second, width)
    else:
        dims = (first, second, width)
    ids_first = g.chance(0.25) and len(dims) == 3
    if ids_first:
        g.input("input_ids", INT64, dims[:2])
        g.give(g.op("Gather", [g.weights(32, width, scale=1.0), "input_ids"], dims, axis=0))
    else:
        dtype = FLOAT if g.chance(0.93) else TensorProto.DOUBLE
        name = g.rng.choice(("x", "input", "hidden_states", "pixel_values", "input.1", "Shape"))
        value = g.input(name, dtype, dims)
        if dtype != FLOAT:
            g.give(g.cast(value, FLOAT))
    if len(dims) == 3 and g.chance(0.5):
        _draw_mask(g, dims[:2])
    if g.chance(0.25):
        _draw_second(g, dims)


def _draw_mask(g: Sketch, dims: tuple[Dim, ...]) -> None:
    dtype = g.rng.choice((INT64, INT64, INT64, FLOAT, BOOL))
    mask = g.input(g.rng.choice(("attention_mask", "mask", "input_mask")), dtype, dims)
    if dtype == FLOAT:
        g.pool.remove(mask)  # nothing but masking is done with it
        g.pool.insert(0, mask)


def _draw_second(g: Sketch, dims: tuple[Dim, ...]) -> None:
    """Add an input with the same axes, with one of its own, or with sizes of one."""
    way = g.rng.randrange(4)
    if way == 0:
        g.input("other", FLOAT, dims)
    elif way == 1:
        own = tuple("own_axis" if axis == 0 else dim for axis, dim in enumerate(dims))
        g.input("other", FLOAT, own)
    elif way == 2:
        other = g.input("bias", FLOAT, dims[-1:])
        if isinstance(dims[-1], int):
            g.give(g.op("Add", [g.pool[0] if g.pool[0].dtype == FLOAT else g.pool[1], other], dims))
    else:
        main = next(value for value in g.pool if value.dtype == FLOAT)
        if len(dims) == 3:  # equal to the first's, or one: said with a name of its own
            other = g.input("other", FLOAT, ("b2", *dims[1:]))
            g.give(g.op("Add", [main, other], (g.fresh(), *dims[1:])))


def _outputs(g: Sketch) -> list[Value]:
    """Choose what is given out: the newest, and one or two others; a weight now and then, too."""
    made = [value for value in g.pool if value not in g.inputs]
    if not made:
        last = g.pool[-1]
        made = [g.same("Identity", last)]
    chosen = [made[-1]]
    for value in g.rng.sample(made, min(len(made), g.rng.choice((0, 1, 1, 2)))):
        if value not in chosen:
            chosen.append(value)
    if g.chance(0.06) and g.constants:
        name = g.rng.choice(list(g.constants))
        array = g.constants[name]
        chosen.append(Value(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape))
    return chosen
