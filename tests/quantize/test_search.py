"""The search for int8: smoothing, statistics of what is divided, switches that change nothing when they are off.

Covers: quantize/smooth.py, quantize/switchboard.py
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxopt.calibrate.ranges import choose
from onnxopt.calibrate.statistics import Statistics
from onnxopt.graph.layers import Layers
from onnxopt.qmath.affine import columns
from onnxopt.qmath.precision import Affine, PlannedLinear, Precision
from onnxopt.quantize.smooth import choose_smoothing, divided
from onnxopt.quantize.switchboard import Switchboard
from onnxopt.spec import Array
from tests.support.rules import parse


def tensor(outlier: float) -> Array:
    x = np.random.default_rng(0).standard_normal((600, 16)).astype(np.float32)
    x[:, 3] *= outlier
    return x


def watched(x: Array) -> Statistics:
    found = Statistics(x.shape[-1])
    found.add(x)
    return found


def product_error(x: Array, weight: Array, factors: Array) -> float:
    inputs, turned = x / factors, weight * factors[:, None]
    grid, _ = choose(watched(inputs), inputs, turned, ("min-max",))
    codes, scales = columns(turned, clips=(1.0,))
    rounded = (np.clip(np.rint(inputs / grid.scale) + grid.zero_point, 0, 255) - grid.zero_point) * grid.scale
    return float(np.square(rounded @ (codes * scales) - x @ weight).mean())


def test_smoothing_takes_an_outlier_channel_out_of_the_grid() -> None:
    x, weight = tensor(60.0), np.random.default_rng(1).standard_normal((16, 8)).astype(np.float32)
    found = choose_smoothing(watched(x), x[:200], [weight], ("min-max",))
    assert found.strength > 0
    assert int(found.factors.argmax()) == 3
    plain = product_error(x, weight, np.ones(16, np.float32))
    assert product_error(x, weight, found.factors) < plain / 4


def test_divided_statistics_are_those_of_the_divided_tensor() -> None:
    x, factors = tensor(10.0), np.linspace(0.5, 4, 16).astype(np.float32)
    found, expected = divided(watched(x), factors), watched(x / factors)
    np.testing.assert_allclose(found.high, expected.high, rtol=1e-6)
    np.testing.assert_allclose(found.moments, expected.moments, rtol=1e-5)
    assert found.rows == expected.rows


TWO = """
g (float[batch,sequence,16] x) => (float[batch,sequence,4] y) {
  h = MatMul(x, first)
  b = Add(h, bias)
  r = Relu(b)
  y = MatMul(r, second)
}"""


def two() -> ir.Model:
    generator = np.random.default_rng(2)
    weights = {
        "first": generator.standard_normal((16, 32)).astype(np.float32),
        "bias": generator.standard_normal(32).astype(np.float32),
        "second": generator.standard_normal((32, 4)).astype(np.float32),
    }
    return parse(TWO, weights)


def test_switches_that_are_off_change_no_bit_and_on_they_round() -> None:
    from onnxopt.probe.runners import GraphRunner

    model = two()
    x = np.random.default_rng(3).standard_normal((2, 5, 16)).astype(np.float32)
    board = Switchboard(Layers.of(model), "y")
    assert board.labels == ["first", "second"]
    expected = GraphRunner(model).run({"x": x})[0]["y"]
    assert np.array_equal(expected, board.run({"x": x}, {}))
    weight = model.graph.initializers["first"].const_value
    assert weight is not None
    coarse = PlannedLinear(Precision("int8"), activation=Affine(0.5, 128), columns=columns(weight.numpy()))
    rounded = np.clip(np.rint(x / 0.5), -128, 127) * 0.5
    codes, scales = columns(weight.numpy())
    bias, second = (model.graph.initializers[name].const_value for name in ("bias", "second"))
    assert bias is not None
    assert second is not None
    by_hand = np.maximum(rounded @ (codes * scales) + bias.numpy(), 0) @ second.numpy()
    np.testing.assert_allclose(board.run({"x": x}, {"first": coarse}), by_hand, rtol=1e-4, atol=1e-3)
    assert np.array_equal(expected, board.run({"x": x}, {}))
