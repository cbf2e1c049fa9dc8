"""Bounds hold for every input, the largest and the most adverse, and are no wider than a network can use."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.graph.magnitude import Magnitude, longest_row, magnitude
from onnxopt.probe.annotate import annotate
from onnxopt.probe.runners import GraphRunner
from onnxopt.sizes import Derivation
from onnxopt.spec import Array
from tests.support.rules import parse

GENERATOR = np.random.default_rng(5)
WIDTH = 6
WEIGHTS: dict[str, Array] = {
    "gamma": GENERATOR.standard_normal(WIDTH).astype(np.float32),
    "beta": GENERATOR.standard_normal(WIDTH).astype(np.float32),
    "weight": GENERATOR.standard_normal((WIDTH, WIDTH)).astype(np.float32),
    "tall": GENERATOR.standard_normal((WIDTH, 12)).astype(np.float32),
    "bias": GENERATOR.standard_normal(WIDTH).astype(np.float32),
    "number": np.array(-3.5, np.float32),
    "column": np.array([[2.0]], np.float32),
    "table": GENERATOR.standard_normal((9, WIDTH)).astype(np.float32),
    "low": np.array(-2.0, np.float32),
    "high": np.array(1.5, np.float32),
    "heads": np.array([0, 0, 2, 3]),
    "joined": np.array([0, 0, 6]),
    "three": np.array([3, 3]),
    "zero": np.array([0]),
    "two": np.array([2]),
    "last": np.array([-1]),
    "even": np.arange(6).reshape(3, 2) / 7,
}
NORM = "n = LayerNormalization(x, gamma, beta)"
BOUNDED = {
    "a norm": f"{NORM} y = Identity(n)",
    "a norm without a shift": "y = LayerNormalization(x, gamma)",
    "a norm of squares": "y = RMSNormalization(x, gamma)",
    "squashed": "y = Tanh(x)",
    "weights of a softmax": "y = Softmax<axis=-1>(x)",
    "a unit vector": "y = LpNormalization(x)",
    "clipped": "y = Clip(x, low, high)",
    "a linear": f"{NORM} p = MatMul(n, weight) y = Add(p, bias)",
    "a wide linear": f"{NORM} y = MatMul(n, tall)",
    "a linear as Gemm": f"{NORM} f = Reshape(n, last) g = Tanh(n) y = MatMul(g, weight)",
    "activations": f"{NORM} a = Gelu(n) b = Relu(a) c = Neg(b) d = HardSwish(c) y = Abs(d)",
    "a sum": f"{NORM} t = Sigmoid(x) a = Add(n, t) y = Sub(a, n)",
    "a product": f"{NORM} a = Mul(n, gamma) y = Mul(a, n)",
    "a number": f"{NORM} a = Mul(n, number) b = Div(a, low) y = Add(b, column)",
    "heads": f"{NORM} h = Reshape(n, heads) t = Transpose<perm=[0,2,1,3]>(h) y = Identity(t)",
    "joined heads": f"{NORM} h = Reshape(n, heads) t = Tanh(h) y = Reshape(t, joined)",
    "parts": f"{NORM} a, y = Split<axis=-1>(n, three)",
    "parts joined": f"{NORM} a, b = Split<axis=-1>(n, three) y = Concat<axis=-1>(b, a, n)",
    "rows joined": f"{NORM} y = Concat<axis=1>(n, n)",
    "a cut": f"{NORM} y = Slice(n, zero, two, last)",
    "a row": f"{NORM} y = Gather<axis=1>(n, zero)",
    "one or the other": f"{NORM} c = Greater(x, number) y = Where(c, n, gamma)",
    "values by weights": f"{NORM} w = Softmax<axis=-1>(n) t = Transpose<perm=[0,2,1]>(n) u = Softmax<axis=-1>(t) "
    "y = MatMul(w, u)",
    "an attention": f"{NORM} y = Attention<q_num_heads=2, kv_num_heads=2>(x, x, n)",
}


def bounds_and_runs(body: str) -> tuple[Magnitude, list[Array]]:
    """Derive, then run on noise, on one large entry a row and on equal entries."""
    weights = {name: array for name, array in WEIGHTS.items() if name in body}
    model = parse(f"g (float[batch,sequence,{WIDTH}] x) => (float[] y) {{ {body} }}", weights)
    annotate(model, Derivation(), incomplete=True)
    found = magnitude(model.graph.outputs[0])
    noise = GENERATOR.standard_normal((2, 5, WIDTH))
    spike = np.where(np.arange(WIDTH) == 2, 1.0, 0.0) * np.sign(noise[..., :1])
    given = [
        (kind * size).astype(np.float32)
        for size in (1e-3, 1.0, 50.0, 1e6, 1e15)
        for kind in (noise, np.broadcast_to(spike, noise.shape), np.ones_like(noise))
    ]
    return found, [GraphRunner(model).run({"x": x})[0]["y"] for x in given]


@pytest.mark.parametrize("body", BOUNDED.values(), ids=BOUNDED.keys())
def test_no_input_goes_beyond_the_bounds(body: str) -> None:
    found, answers = bounds_and_runs(body)
    entry = max(float(np.abs(answer).max()) for answer in answers)
    row = max(float(np.sqrt((answer.astype(np.float64) ** 2).sum(-1)).max()) for answer in answers)
    assert entry <= found.entry < math.inf
    assert row <= found.row < math.inf
    assert found.row < 40 * max(row, 1), "wider than of any use"


def test_entries_are_known_where_rows_are_as_long_as_the_text() -> None:
    found, answers = bounds_and_runs(f"{NORM} h = Reshape(n, heads) y = Transpose<perm=[0,2,3,1]>(h)")
    assert max(float(np.abs(answer).max()) for answer in answers) <= found.entry < math.inf
    assert math.isinf(found.row)


UNBOUNDED = {
    "an input": "y = Identity(x)",
    "a linear of an input": "y = MatMul(x, weight)",
    "an input beside a norm": f"{NORM} y = Add(n, x)",
    "an exponential": f"{NORM} y = Exp(n)",
    "what is divided by activations": f"{NORM} y = Div(n, x)",
    "a norm with a computed factor": "s = ReduceSum<keepdims=0>(x) y = LayerNormalization(x, s)",
    "values of an input": "w = Softmax<axis=-1>(x) t = Transpose<perm=[0,2,1]>(x) y = MatMul(w, t)",
    "weights along another axis": f"{NORM} w = Softmax<axis=1>(x) t = Transpose<perm=[0,2,1]>(n) y = MatMul(w, t)",
    "a slope of its own": f"{NORM} y = LeakyRelu<alpha=3.0>(n)",
}


@pytest.mark.parametrize("body", UNBOUNDED.values(), ids=UNBOUNDED.keys())
def test_nothing_is_said_of_what_follows_an_input(body: str) -> None:
    weights = {name: array for name, array in WEIGHTS.items() if name in body}
    model = parse(f"g (float[batch,sequence,{WIDTH}] x) => (float[] y) {{ {body} }}", weights)
    annotate(model, Derivation(), incomplete=True)
    assert math.isinf(magnitude(model.graph.outputs[0]).row)


@pytest.mark.parametrize("shape", [(3, 3), (5, 40), (40, 5), (1030, 1040)])
def test_a_matrix_makes_no_row_longer_than_it_says(shape: tuple[int, int]) -> None:
    weight = GENERATOR.standard_normal(shape)
    wanted = float(np.linalg.norm(weight, 2)) if max(shape) < 1000 else None
    found = longest_row(weight)
    rows = GENERATOR.standard_normal((50, shape[0]))
    assert (np.linalg.norm(rows @ weight, axis=1) <= found * np.linalg.norm(rows, axis=1) * (1 + 1e-9)).all()
    assert wanted is None or found == pytest.approx(wanted)


def test_what_is_made_of_nothing_is_nothing_known() -> None:
    assert magnitude(None) == Magnitude(0.0, 0.0)
    assert math.isinf(magnitude(ir.Value(name="free", type=ir.TensorType(ir.DataType.FLOAT))).entry)
