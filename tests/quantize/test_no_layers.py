"""A weight behind axes of one is quantized like a matrix; where no layer is, nothing is judged and a line says so.

Covers: quantize/run.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.records.quantization import QuantizationRecord
from onnxopt.road.optimize import optimize
from onnxopt.spec import Array
from tests.support.rules import parse

RNG = np.random.default_rng(2)
PRECISIONS = ("int8", "int8-dynamic", "int8-weights:32", "int4-weights:32")
QUANTIZED = ("Integer", "NBits", "DynamicQuantize", "QuantizeLinear", "QLinear")


def quantized(
    text: str, weights: dict[str, Array], row: tuple[int, ...], precision: str, folder: Path
) -> tuple[QuantizationRecord, set[str]]:
    """Optimize a graph that takes x [batch, *row], calibrated with normal numbers; return record and operators."""
    (folder / "feeds").mkdir()
    for number in range(12):
        np.savez(folder / "feeds" / f"{number}.npz", x=RNG.standard_normal((1, *row)).astype(np.float32))
    ir.save(parse(text, weights, opset=17), folder / "m.onnx")
    made = optimize(
        folder / "m.onnx",
        out=folder / "out",
        precision=precision,
        calibration=folder / "feeds",
        budget="cosine>=0.9",
        measure=False,
    )
    record = made.manifest.quantization
    assert record is not None
    return record, {node.op_type for node in onnx.load(folder / "out" / "model.onnx").graph.node}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("shape", "bias"), [((1, 64, 40), (40,)), ((1, 1, 64, 40), ()), ((1, 64, 40), (1, 1, 40))])
def test_axes_of_one_do_not_keep_a_layer_in_float(
    precision: str, shape: tuple[int, ...], bias: tuple[int, ...], tmp_path: Path
) -> None:
    x = "batch,5,64" if len(shape) == 3 else "batch,1,5,64"
    weights = {"w": 0.2 * RNG.standard_normal(shape).astype(np.float32)}
    text = f"g (float[{x}] x) => (float y) {{ h = MatMul(x, w)\n y = Relu(h) }}"
    if bias:
        weights["b"] = RNG.standard_normal(bias).astype(np.float32)
        text = text.replace("y = Relu(h)", "z = Add(h, b)\n y = Relu(z)")
    record, ops = quantized(text, weights, (*([1] * (len(shape) - 3)), 5, 64), precision, tmp_path)
    assert record.shipped, record.reason
    assert [one.precision for one in record.layers.values()] == [precision]
    assert record.gate is not None
    assert 0.9 < record.gate.value < 0.999_999
    assert any(part in op for op in ops for part in QUANTIZED), ops


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_graph_without_a_layer_says_so_and_is_not_judged(precision: str, tmp_path: Path) -> None:
    text = "g (float[batch,5,6] x) => (float y) { t = Transpose<perm=[0,2,1]>(x)\n y = MatMul(x, t) }"
    record, ops = quantized(text, {}, (5, 6), precision, tmp_path)
    assert (record.shipped, record.gate) == (False, None)
    assert len(record.lines()) == 1
    assert record.lines()[0].startswith(f"precision     {precision}: the float graph is shipped; no layer was found")
    assert not any(part in op for op in ops for part in QUANTIZED)


def test_layers_that_all_stay_in_float_are_not_judged_either(tmp_path: Path) -> None:
    text = "g (float[batch,5,6] x) => (float y) { h = MatMul(x, w)\n y = Relu(h) }"
    record, ops = quantized(
        text, {"w": RNG.standard_normal((6, 3)).astype(np.float32)}, (5, 6), "int4-weights:32", tmp_path
    )
    assert (record.shipped, record.gate) == (False, None)
    assert record.lines()[0].endswith("no layer was quantized (6 inputs are less than a block)")
    assert [one.precision for one in record.layers.values()] == ["fp32"]
    assert "MatMulNBits" not in ops
