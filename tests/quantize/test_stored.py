"""Weights that a file stores in few bits stay so, and quantizing takes their codes as they are.

Covers: graph/stored_weights.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxopt.graph.stored_weights import pack_weights, stored_weight, unpack_weights, widens_weight
from onnxopt.qmath.blocks import dequantize
from onnxopt.qmath.precision import Blocked
from onnxopt.road.optimize import optimize
from onnxopt.spec import Array
from tests.support.rules import parse

RNG = np.random.default_rng(8)
ROWS, COLUMNS = 96, 72
INT8 = RNG.integers(-127, 128, (ROWS, COLUMNS)).astype(np.int8)
UINT8 = RNG.integers(0, 256, (ROWS, COLUMNS)).astype(np.uint8)
PER_COLUMN = RNG.uniform(0.001, 0.003, (1, COLUMNS)).astype(np.float32)
POINTS = RNG.integers(90, 160, (1, COLUMNS)).astype(np.float32)
BIAS = RNG.standard_normal(COLUMNS).astype(np.float32)

Weights = dict[str, Array]
SPELLINGS: dict[str, tuple[str, Weights, bool]] = {  # nodes, constants, and whether a kernel holds the codes
    "per column": ("f = Cast<to=1>(q) w = Mul(f, s)", {"q": INT8, "s": PER_COLUMN}, True),
    "the scale first": ("f = Cast<to=1>(q) w = Mul(s, f)", {"q": INT8, "s": PER_COLUMN[0]}, True),
    "one scale": ("f = Cast<to=1>(q) w = Mul(f, s)", {"q": INT8, "s": np.array(0.002, np.float32)}, True),
    "zero points": (
        "f = Cast<to=1>(q) c = Sub(f, z) w = Mul(c, s)",
        {"q": UINT8, "z": POINTS, "s": PER_COLUMN},
        True,
    ),
    "a scale for each input": (
        "f = Cast<to=1>(q) w = Mul(f, s)",
        {"q": INT8, "s": RNG.uniform(0.001, 0.003, (ROWS, 1)).astype(np.float32)},
        False,
    ),
    "halves": ("w = Cast<to=1>(q)", {"q": (0.1 * RNG.standard_normal((ROWS, COLUMNS))).astype(np.float16)}, False),
}


def graph(spelling: str) -> ir.Model:
    """Return y = Relu(x w + b) with a weight in few bits."""
    nodes, weights, _ = SPELLINGS[spelling]
    text = f"g (float[batch,5,{ROWS}] x) => (float y) {{ {nodes} p = MatMul(x, w) h = Add(p, b) y = Relu(h) }}"
    return parse(text, {**weights, "b": BIAS}, opset=17)


def product(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "MatMul")


def answers(path: Path, feeds: dict[str, Array]) -> Array:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return np.asarray(onnxruntime.InferenceSession(path, options).run(None, feeds)[0])


def optimized(model: ir.Model, folder: Path, **options: Any) -> tuple[Any, Path]:
    (folder / "feeds").mkdir()
    for number in range(12):
        np.savez(folder / "feeds" / f"{number}.npz", x=RNG.standard_normal((1, 5, ROWS)).astype(np.float32))
    ir.save(model, folder / "m.onnx")
    made = optimize(folder / "m.onnx", out=folder / "out", measure=False, calibration=folder / "feeds", **options)
    return made, folder / "out" / "model.onnx"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_float_graph_keeps_them_small_and_equal(spelling: str, tmp_path: Path) -> None:
    _, path = optimized(graph(spelling), tmp_path)
    assert path.stat().st_size < 1.3 * (tmp_path / "m.onnx").stat().st_size
    feeds = {"x": RNG.standard_normal((3, 5, ROWS)).astype(np.float32)}
    np.testing.assert_allclose(answers(path, feeds), answers(tmp_path / "m.onnx", feeds), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spelling", [name for name, (_, _, exact) in SPELLINGS.items() if exact])
@pytest.mark.parametrize("block_size", [16, 64])
def test_the_codes_of_the_file_are_the_codes_of_the_kernel(spelling: str, block_size: int, tmp_path: Path) -> None:
    made, path = optimized(graph(spelling), tmp_path, precision=f"int8-weights:{block_size}")
    record = made.manifest.quantization
    assert record.shipped, record.reason
    (layer,) = record.layers.values()
    assert layer.reason == "the checkpoint's own grid"
    (node,) = [node for node in onnx.load(path).graph.node if node.op_type == "MatMulNBits"]
    held = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    codes = held[node.input[1]].reshape(COLUMNS, -1)[:, :ROWS]
    scales = held[node.input[2]].reshape(COLUMNS, -1)
    points = held[node.input[3]].reshape(COLUMNS, -1) if len(node.input) > 3 and node.input[3] else None
    restored = dequantize(Blocked(codes, scales, points, 8, block_size))
    stored = stored_weight(product(graph(spelling)).inputs[1])
    assert stored is not None
    assert np.array_equal(restored, stored.restored())


@pytest.mark.parametrize("precision", ["int8-weights:32", "int4-weights:32", "int8-dynamic", "int8"])
@pytest.mark.parametrize("spelling", ["a scale for each input", "halves", "zero points"])
def test_every_precision_sees_the_layer(spelling: str, precision: str, tmp_path: Path) -> None:
    made, path = optimized(graph(spelling), tmp_path, precision=precision, budget="cosine>=0.9")
    record = made.manifest.quantization
    assert record.shipped, record.reason
    assert [one.precision.removesuffix(":asymmetric") for one in record.layers.values()] == [precision]
    assert path.stat().st_size < 1.5 * (tmp_path / "m.onnx").stat().st_size


def test_a_layer_that_is_kept_in_float_is_kept_small(tmp_path: Path) -> None:
    text = f"""g (float[batch,5,{ROWS}] x) => (float y) {{
      f = Cast<to=1>(q) w = Mul(f, s) p = MatMul(x, w) h = Relu(p)
      f2 = Cast<to=1>(q2) u = Mul(f2, s2) y = MatMul(h, u)
    }}"""
    weights: dict[str, Array] = {
        "q": INT8,
        "s": PER_COLUMN,
        "q2": INT8.T.copy(),
        "s2": np.full((1, ROWS), 0.002, np.float32),
    }
    made, path = optimized(parse(text, weights, opset=17), tmp_path, precision="int8-weights:32", keep="u")
    record = made.manifest.quantization
    assert sorted(one.precision for one in record.layers.values()) == ["fp32", "int8-weights:32"]
    assert path.stat().st_size < 1.5 * (tmp_path / "m.onnx").stat().st_size
    feeds = {"x": RNG.standard_normal((2, 5, ROWS)).astype(np.float32)}
    expected = answers(tmp_path / "m.onnx", feeds)
    np.testing.assert_allclose(answers(path, feeds), expected, atol=0.03 * float(np.abs(expected).max()))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_packing_brings_the_same_bits_back(spelling: str) -> None:
    model = graph(spelling)
    before = stored_weight(product(model).inputs[1])
    assert before is not None
    stored = unpack_weights(model)
    assert len(stored) == 1
    assert stored_weight(product(model).inputs[1]) is None
    pack_weights(model, stored)
    after = stored_weight(product(model).inputs[1])
    assert after is not None
    assert np.array_equal(after.codes, before.codes)
    assert np.array_equal(after.restored(), before.restored())


NOT_STORED = {
    "a mask table": "g (float[batch,80] x) => (float y) { f = Cast<to=1>(q) m = Mul(f, s) y = Add(x, m) }",
    "the left operand": "g (float[72,batch] x) => (float y) { f = Cast<to=1>(q) n = Neg(f) y = MatMul(n, x) }",
}


@pytest.mark.parametrize("text", NOT_STORED.values(), ids=NOT_STORED.keys())
def test_other_constants_are_folded_as_ever(text: str) -> None:
    weights = {"q": RNG.integers(0, 2, (80, 80) if "80" in text else (ROWS, 72)).astype(np.int8)}
    weights |= {"s": np.array(-10000.0, np.float32)} if "(f, s)" in text else {}
    model = parse(text, weights, opset=17)
    cast = next(node for node in model.graph if node.op_type == "Cast")
    assert not widens_weight(cast)
